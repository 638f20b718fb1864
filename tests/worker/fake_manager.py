"""A small manager for tests of the worker: one node, every page at once, and trouble on demand.

It speaks `dsm.wire.control` and the boards as the real one does, with frames that never leave.  What a
test wants to happen it says by the name of the region:

* ``status-<n>…``  every fault ends with that status of `dsm.errors.Status`;
* ``hang-…``       prefetching and pinning are never answered, only cancelled.

Run as ``fake_manager.py [--name HEX] [--ranks N] [--private] --ready-fd FD``.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket

import msgspec

from dsm import limits
from dsm._native import (
    OP_DONE,
    OP_NO_REPLY,
    OP_TOUCHED,
    READ,
    WRITE,
    Board,
    Tables,
    node_board_bytes,
    worker_board_bytes,
)
from dsm.errors import Status
from dsm.sync.service import SyncHome
from dsm.types import Region, SyncObject
from dsm.wire import control
from dsm.wire.calls import Op

_ADDRESS = limits.ADDRESS_LOW + secrets.randbelow(1 << 20) * limits.ADDRESS_ALIGNMENT


class Session:
    def __init__(self, end):
        self.end = end
        self.worker = self.nudge = -1
        self.regions = set()
        self.waiting = []  # opens of regions that are not ready: (number, key)
        self.creating = set()
        self.left, self.rank = False, 0


class Held:
    """A region: its description, frames and tables."""

    def __init__(self, board, region):
        self.region = region
        self.ready = True
        self.closed = False
        self.frames = os.memfd_create("fake-frames")
        os.ftruncate(self.frames, region.size)
        if region.options.fill:
            pattern = region.options.fill * (region.size // len(region.options.fill) + 1)
            os.pwrite(self.frames, pattern[: region.size], 0)
        self.wanted = os.memfd_create("fake-wanted")
        os.ftruncate(self.wanted, region.pages)
        self.tables = Tables(board, region.region, region.pages, self.wanted)
        name = region.options.name or ""
        found = re.match(r"status-(\d+)", name)
        self.status = int(found[1]) if found else Status.OK
        self.hangs = name.startswith("hang-")


class Manager:
    def __init__(self, options):
        self.options = options
        self.node_fd, self.bell_fd = self.memory(node_board_bytes()), os.eventfd(0, os.EFD_NONBLOCK)
        self.board = Board(self.node_fd, self.bell_fd)
        self.name = f"@dsm-{options.name or secrets.token_hex(8)}"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("\0" + self.name[1:])
        self.listener.listen(64)
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.sessions, self.workers, self.fds = {}, {}, {}
        self.regions, self.objects, self.home = {}, {}, SyncHome()
        self.attached = 0
        self.calls = {}  # ticket -> (worker, slot)
        self.tickets = 0
        self.destroying = []  # (session, number, asked: {worker: sequence})
        self.hanging = set()
        self.running = True

    @staticmethod
    def memory(size):
        fd = os.memfd_create("fake")
        os.ftruncate(fd, size)
        return fd

    def run(self):
        while self.running:
            events, ready = self.board.wait(self.epoll.fileno(), 0, 1_000_000_000)
            posted = [events[at : at + 7] for at in range(0, len(events), 8)]
            for event in sorted(posted, key=lambda event: not event[2] & OP_NO_REPLY):
                self.posted(*event)
            for fd, _ in ready:
                if fd == self.listener.fileno():
                    end, _ = self.listener.accept()
                    self.sessions[end.fileno()] = Session(end)
                    self.epoll.register(end, select.EPOLLIN)
                elif fd in self.sessions:
                    self.receive(self.sessions[fd])

    # ---- control ----------------------------------------------------------------------------------

    def receive(self, session):
        """Take all that is there: the end of a worker must not come behind the attachment of the next one."""
        while session.end.fileno() in self.sessions and self.receive_one(session):
            pass

    def receive_one(self, session):
        try:
            data = session.end.recv(limits.MAX_CONTROL_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.leave(session)
            return False
        try:
            call = control.decode_call(data)
        except msgspec.MsgspecError:  # somebody who looks for managers
            self.leave(session)
            return False
        getattr(self, type(call.body).__name__)(session, call.number, call.body)
        return True

    def leave(self, session):
        del self.sessions[session.end.fileno()]
        self.epoll.unregister(session.end)
        session.end.close()
        if session.worker >= 0:
            for number in session.creating:
                self.drop(number)
            for number in session.regions:
                if number in self.regions:
                    self.regions[number].tables.remove(session.worker)
            self.board.remove(session.worker)
            os.close(session.nudge)
            del self.workers[session.worker]
            self.replies(self.home.worker_gone(0, session.worker, died=not session.left, rank=session.rank))
            self.finish_destroying(session.worker, 1 << 63)
            if self.options.private and not self.workers:
                self.running = False

    def answer(self, session, number, body, fds=()):
        data = control.encode(control.Answer(number, body))
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):
            session.end.sendmsg([data], extra)

    def Attach(self, session, number, body):
        worker = next(n for n in range(limits.MAX_WORKERS_PER_NODE) if n not in self.workers)
        session.worker, self.workers[worker] = worker, session
        board, nudge = self.memory(worker_board_bytes()), os.eventfd(0, os.EFD_NONBLOCK)
        self.board.add(worker, board, nudge)
        rank = session.rank = self.attached if body.rank is None else body.rank
        self.attached += 1
        ranks = self.options.ranks
        reply = control.Attached(0, worker, rank, ranks or self.attached, os.getpid(), self.name, bool(ranks))
        self.answer(session, number, reply, (self.node_fd, board, self.bell_fd, nudge))
        os.close(board)
        session.nudge = nudge  # the board writes to it

    def Leave(self, session, number, body):
        session.left = True

    def find(self, key):
        for held in self.regions.values():
            if not held.closed and key in (held.region.region, held.region.options.name):
                return held
        return None

    def CreateRegion(self, session, number, body):
        global _ADDRESS
        held = self.find(body.options.name) if body.options.name else None
        if held:
            self.open(session, number, held, False)
            return
        region = Region(len(self.regions) + 1, body.options, _ADDRESS, (0,))
        _ADDRESS += (region.size // limits.ADDRESS_ALIGNMENT + 2) * limits.ADDRESS_ALIGNMENT
        held = self.regions[region.region] = Held(self.board, region)
        held.ready = body.ready
        if not body.ready:
            session.creating.add(region.region)
        self.open(session, number, held, True)

    def OpenRegion(self, session, number, body):
        held = self.find(body.key)
        if held is None:
            self.answer(session, number, control.Failed(Status.UNKNOWN_NAME, f"no region is {body.key!r}"))
        else:
            self.open(session, number, held, False)

    def open(self, session, number, held, created):
        region = held.region
        if not created and not held.ready:
            session.waiting.append((number, region.region))
            return
        fds = ()
        if region.region not in session.regions:
            session.regions.add(region.region)
            fds = (held.frames, held.wanted, self.memory(region.pages))
            held.tables.add(session.worker, fds[2])
        self.answer(session, number, control.Opened(region, created), fds)
        if fds:
            os.close(fds[2])

    def RegionReady(self, session, number, body):
        held = self.regions[body.region]
        held.ready = True
        session.creating.discard(body.region)
        self.answer(session, number, control.Done())
        for other in self.sessions.values():
            waiting, other.waiting = other.waiting, []
            for asked, key in waiting:
                self.open(other, asked, self.regions[key], False)

    def CloseRegion(self, session, number, body):
        if body.region in session.regions:
            session.regions.discard(body.region)
            self.regions[body.region].tables.remove(session.worker)
        self.answer(session, number, control.Done())

    def DestroyRegion(self, session, number, body):
        held = self.find(body.key)
        if held is None:
            self.answer(session, number, control.Failed(Status.UNKNOWN_NAME, f"no region is {body.key!r}"))
            return
        session.creating.discard(held.region.region)
        asked = self.drop(held.region.region)
        self.destroying.append((session, number, asked))
        self.finish_destroying(-1, 0)

    def drop(self, number):
        held = self.regions[number]
        held.closed = True
        for other in self.sessions.values():
            for asked, key in other.waiting:
                if key == number:
                    self.answer(other, asked, control.Failed(Status.CLOSED, "its creator gave up"))
            other.waiting = [each for each in other.waiting if each[1] != number]
        return dict(held.tables.lower(0, held.region.pages, 0))

    def finish_destroying(self, worker, sequence):
        for entry in list(self.destroying):
            session, number, asked = entry
            if asked.get(worker, 1 << 64) <= sequence:
                del asked[worker]
            if not asked:
                self.destroying.remove(entry)
                self.answer(session, number, control.Done())

    def ListRegions(self, session, number, body):
        live = [held.region for held in self.regions.values() if not held.closed]
        self.answer(session, number, control.RegionList(live))

    def OpenSync(self, session, number, body):
        found = self.objects.get((body.kind, body.name))
        if found is None:
            count = len(self.objects) + 1
            found = self.objects[body.kind, body.name] = SyncObject(
                count, body.kind, body.name, 0, body.value, body.bounded
            )
            self.home.create(found)
        self.answer(session, number, control.SyncOpened(found))

    def ListNodes(self, session, number, body):
        self.answer(session, number, control.NodeList([0]))

    def GetStatistics(self, session, number, body):
        counters, latency = self.board.statistics(session.worker)
        self.answer(
            session, number, control.Statistics(counters | {"unknown_to_users": 1, "pages_in": 0}, latency)
        )

    def GetStatus(self, session, number, body):
        """`dsm status` asks every manager of the machine, also those of tests that run beside it."""
        self.answer(session, number, control.Failed(Status.USAGE, "this manager is a test's stand-in"))

    # ---- slots ------------------------------------------------------------------------------------

    def posted(self, worker, slot, op, number, a, b, c):
        if op == OP_DONE:
            self.finish_destroying(worker, a)
        elif op == OP_TOUCHED:
            return
        elif op & OP_NO_REPLY:
            self.replies(self.home.request(op & ~OP_NO_REPLY, number, 0, 0, (worker, a), a, b))
        elif op < 16:
            held = self.regions[number]
            status = Status.CLOSED if held.closed else held.status
            if status == Status.OK:
                held.tables.raise_(a, 1, WRITE)
            self.board.complete(worker, slot, status)
        elif op in (Op.PREFETCH, Op.PIN, Op.UNPIN):
            held = self.regions[number]
            if held.hangs and op != Op.UNPIN:
                self.hanging.add((worker, slot))
                return
            if held.status == Status.OK and op != Op.UNPIN:
                held.tables.raise_(a, b, WRITE if c else READ)
            self.board.complete(worker, slot, held.status)
        elif op == Op.CANCEL and (worker, a) in self.hanging:
            self.hanging.discard((worker, a))
            self.board.complete(worker, a, Status.CANCELLED)
            self.board.complete(worker, slot)
        else:
            self.tickets += 1
            self.calls[self.tickets] = (worker, slot)
            if op == Op.CANCEL:
                a = next((ticket for ticket, call in self.calls.items() if call == (worker, a)), 0)
            self.replies(self.home.request(op, number, 0, self.tickets, (worker, a), a, b))

    def replies(self, replies):
        for reply in replies:
            if not reply.ticket:  # nobody waits for it
                continue
            worker, slot = self.calls.pop(reply.ticket)
            if worker in self.workers:
                self.board.complete(worker, slot, reply.status, reply.result)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--name")
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--ready-fd", type=int, required=True)
    manager = Manager(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: setattr(manager, "running", False))
    ready = manager.options.ready_fd
    os.write(ready, json.dumps({"node": 0, "socket": manager.name, "listen": None}).encode() + b"\n")
    os.close(ready)
    manager.run()


if __name__ == "__main__":
    main()
