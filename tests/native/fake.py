"""A node of the shim without the rest of dsm: the files, a stand-in for the manager, a worker.

Owns what a test script (run in a process of its own, see conftest) needs to try the shim: `Node` makes
the boards, tables and frames; `Node.manager` forks a process that serves faults by a simple rule;
`Node.worker` starts the worker side here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsm import _native

PAGE = 4096
ADDRESS = 0x5900_0000_0000
LOST, CLOSED, LIMIT = 2, 1, 5


def memfd(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.001)


def maps() -> list[str]:
    """Return the lines of memory maps that lie where regions do, in /proc's words."""
    with open("/proc/self/maps") as lines:
        spans = ((int(line.partition("-")[0], 16), line) for line in lines)
        return [line for low, line in spans if ADDRESS <= low < ADDRESS + (1 << 40)]


@dataclass
class Region:
    number: int
    pages: int
    shift: int
    address: int
    workers: int
    frames_fd: int = -1
    wanted_fd: int = -1
    applied_fds: list[int] = field(default_factory=list)
    leased: bool = False

    def __post_init__(self) -> None:
        self.frames_fd = memfd("frames", self.size)
        self.wanted_fd = memfd("wanted", _native.wanted_bytes(self.pages, self.leased))
        self.applied_fds = [memfd("applied", self.pages) for _ in range(self.workers)]

    @property
    def size(self) -> int:
        return self.pages << self.shift

    @property
    def frames(self) -> np.ndarray:
        return np.frombuffer(mmap.mmap(self.frames_fd, self.size), np.uint8)

    @property
    def wanted(self) -> np.ndarray:
        return np.frombuffer(mmap.mmap(self.wanted_fd, self.pages), np.uint8)

    def applied(self, worker: int = 0) -> np.ndarray:
        return np.frombuffer(mmap.mmap(self.applied_fds[worker], self.pages), np.uint8)

    def map(self, worker: int = 0) -> None:
        _native.region_map(
            self.number, self.address, self.pages, self.shift,
            self.frames_fd, self.wanted_fd, self.applied_fds[worker],
            lease_guard_ns=10_000_000 if self.leased else 0,
        )  # fmt: skip

    @property
    def bytes(self) -> np.ndarray:
        """The region itself, as a program sees it."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def words(self, dtype: str = "u8") -> np.ndarray:
        return self.bytes.view(dtype)


class Node:
    """The files of one node; made before any process of it."""

    def __init__(self, workers: int = 1) -> None:
        self.node_fd = memfd("node", _native.node_board_bytes())
        self.bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.boards = [memfd("board", _native.worker_board_bytes()) for _ in range(workers)]
        self.nudges = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(workers)]
        self.error_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.workers = workers
        self.regions: dict[int, Region] = {}

    def region(self, pages: int = 64, shift: int = 12, number: int = 1, address: int = 0,
               leased: bool = False) -> Region:  # fmt: skip
        address = address or ADDRESS + number * (1 << 36)
        self.regions[number] = Region(number, pages, shift, address, self.workers, leased=leased)
        return self.regions[number]

    def manager(self, serve: Callable[[Manager], None] | None = None, **rule: Any) -> Remote:
        """Fork the manager; `serve` replaces its loop."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                manager = Manager(self, theirs, **rule)
                (serve or Manager.run)(manager)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()
        return Remote(pid, ours)

    def worker(self, manager: Remote | None, number: int = 0, **options: int) -> None:
        """Start the worker side in this process and map every region."""
        settings = {
            "spin_ns": 50_000, "map_limit": 60_000, "error_pause_ns": 50_000_000, "error_fd": self.error_fd,
        } | options  # fmt: skip
        _native.worker_statuses(LOST, CLOSED, LIMIT)
        _native.worker_start(
            node_fd=self.node_fd, worker_fd=self.boards[number], bell_fd=self.bell_fd,
            nudge_fd=self.nudges[number], manager_pidfd=manager.pidfd if manager else -1, **settings,
        )  # fmt: skip
        for region in self.regions.values():
            region.map(number)


class Manager:
    """The stand-in: grants what is asked for, `around` pages at once, except pages in `refuse`."""

    def __init__(self, node: Node, control: socket.socket, around: int = 1, mark: bool = False,
                 refuse: dict[str, int] | None = None, silent: tuple[int, ...] = ()) -> None:  # fmt: skip
        self.node = node
        self.control = control
        self.around, self.mark = around, mark
        self.refuse, self.silent = refuse or {}, silent
        self.board = _native.Board(node.node_fd, node.bell_fd)
        for number in range(node.workers):
            self.board.add(number, node.boards[number], node.nudges[number])
        self.tables = {}
        for region in node.regions.values():
            self.add(region)
        self.epoll = select.epoll()
        self.epoll.register(control, select.EPOLLIN)
        self.done = [0] * node.workers
        self.log: list[list[int]] = []
        self.held: list[tuple[int, int]] = []
        self.spin_ns = 50_000

    def add(self, region: Region) -> None:
        tables = _native.Tables(self.board, region.number, region.pages, region.wanted_fd, region.leased)
        for number in range(self.node.workers):
            tables.add(number, region.applied_fds[number])
        self.tables[region.number] = tables

    def run(self) -> None:
        while True:
            events, ready = self.board.wait(self.epoll.fileno(), self.spin_ns, -1)
            for at in range(0, len(events), _native.EVENT_WORDS):
                self.event(events[at : at + _native.EVENT_WORDS])
            if ready and not self.ask():
                return

    def event(self, event: list[int]) -> None:
        worker, slot, op, number, a = event[:5]
        if op == _native.OP_DONE:
            self.done[worker] = max(self.done[worker], a)
            return
        if op in (_native.OP_FAULT_READ, _native.OP_FAULT_WRITE):
            self.log.append(event)
            self.fault(worker, slot, op, number, a)
        elif op == _native.OP_TOUCHED:
            self.log.append(event)
        else:
            self.call(worker, slot, op, number, a)

    def fault(self, worker: int, slot: int, op: int, number: int, page: int) -> None:
        if page in self.silent:
            self.held.append((worker, slot))
            return
        if str(page) in self.refuse:
            self.board.complete(worker, slot, self.refuse[str(page)])
            return
        level = _native.WRITE if op == _native.OP_FAULT_WRITE else _native.READ
        count = min(self.around, self.tables[number].pages - page)
        marked = [page + count // 2] if self.mark and count > 1 else []
        self.tables[number].raise_(page, count, level, *marked)
        self.board.complete(worker, slot, 0)

    def call(self, worker: int, slot: int, op: int, number: int, a: int) -> None:
        if op == 17:  # never answered, unless told
            self.held.append((worker, slot))
        else:
            self.board.complete(worker, slot, op - 16, (number << 32) + a)

    def lower(self, number: int, page: int, count: int, level: int) -> None:
        """Revoke, and return when everybody obeyed."""
        asked = self.tables[number].lower(page, count, level)
        self.obeyed(asked)

    def lower_runs(self, number: int, runs: list[list[int]], level: int) -> list[tuple[int, int]]:
        """Revoke many runs, and return when everybody obeyed: who was asked."""
        asked = self.tables[number].lower_runs(np.array(runs, np.int64).reshape(-1, 2), level)
        self.obeyed(asked)
        return asked

    def obeyed(self, asked: list[tuple[int, int]], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while any(self.done[worker] < sequence for worker, sequence in asked):
            assert time.monotonic() < deadline, "a worker does not obey"
            events, _ = self.board.wait(self.epoll.fileno(), self.spin_ns, 100_000_000)
            for at in range(0, len(events), _native.EVENT_WORDS):
                self.event(events[at : at + _native.EVENT_WORDS])

    def ask(self) -> bool:
        """Obey one request of the test; False at its end."""
        data = self.control.recv(1 << 16)
        if not data:
            return False
        name, arguments = json.loads(data)
        answer = getattr(self, "do_" + name)(*arguments)
        self.control.send(json.dumps(answer).encode())
        return True

    def do_lower(self, *arguments: int) -> None:
        self.lower(*arguments)

    def do_lower_runs(self, number: int, runs: list[list[int]], level: int) -> list[tuple[int, int]]:
        return self.lower_runs(number, runs, level)

    def do_raise(self, number: int, page: int, count: int, level: int, mark: int = -1) -> None:
        self.tables[number].raise_(page, count, level, *([mark] if mark >= 0 else []))

    def do_lease(self, number: int, page: int, count: int, end: int) -> None:
        self.tables[number].lease(page, count, end)

    def do_log(self) -> list[list[int]]:
        log, self.log = self.log, []
        return log

    def do_statistics(self, worker: int = 0) -> tuple[dict[str, int], list[int]]:
        return self.board.statistics(worker)

    def do_held(self) -> int:
        return len(self.held)

    def do_release(self, status: int, result: int = 0) -> None:
        for worker, slot in self.held:
            self.board.complete(worker, slot, status, result)
        self.held = []

    def do_release_first(self, status: int) -> None:
        self.board.complete(*self.held.pop(0), status)

    def do_unapplied(self, worker: int, slot: int) -> bool:
        return self.board.unapplied(worker, slot)

    def do_toggle(self, number: int, rounds: int) -> int:
        """Grant a page and take it away, many times; returns how often it changed when nobody may write."""
        self.fault = lambda worker, slot, *_: self.held.append((worker, slot))  # type: ignore[method-assign]
        tables, region = self.tables[number], self.node.regions[number]
        words = region.frames.view("u8").reshape(region.pages, -1)[:, :16]
        changed = 0
        for i in range(rounds):
            page = i % region.pages
            tables.raise_(page, 1, _native.WRITE)
            self.do_release(0)
            for _ in range(i % 7):
                os.sched_yield()
            self.obeyed(tables.lower(page, 1, _native.NONE))
            before = words[page].tobytes()
            for _ in range(1 + i % 5):
                self.obeyed([])
                os.sched_yield()
            changed += words[page].tobytes() != before
            self.poll()
        tables.raise_(0, region.pages, _native.WRITE)
        del self.fault
        self.do_release(0)
        return changed

    def do_toggle_runs(self, number: int, rounds: int) -> int:
        """Grant everything and take many runs away, many times; how often one of them changed then."""
        self.fault = lambda worker, slot, *_: self.held.append((worker, slot))  # type: ignore[method-assign]
        tables, region = self.tables[number], self.node.regions[number]
        frames = region.frames.reshape(region.pages, -1)
        changed = 0
        for i in range(rounds):
            tables.raise_(0, region.pages, _native.WRITE)
            self.do_release(0)
            for _ in range(i % 7):
                os.sched_yield()
            pages = list(range(i % 3, region.pages, 2 + i % 7))
            self.lower_runs(number, [[page, 1] for page in pages], i // 2 % 2)
            before = frames[pages].tobytes()
            for _ in range(1 + i % 5):
                self.obeyed([])
                os.sched_yield()
            changed += frames[pages].tobytes() != before
            self.poll()
        tables.raise_(0, region.pages, _native.WRITE)
        del self.fault
        self.do_release(0)
        return changed

    def poll(self) -> None:
        events, _ = self.board.wait(self.epoll.fileno(), 0, 0)
        for at in range(0, len(events), _native.EVENT_WORDS):
            self.event(events[at : at + _native.EVENT_WORDS])

    def do_lower_each_while_stopped(self, number: int, level: int, pid: int) -> int:
        """Revoke page by page while process `pid` is stopped; returns how many commands were posted."""
        os.kill(pid, signal.SIGSTOP)
        until(lambda: "T (stopped)" in Path(f"/proc/{pid}/status").read_text())
        asked: list[tuple[int, int]] = []
        for page in range(self.tables[number].pages):
            asked += self.tables[number].lower(page, 1, level)
        os.kill(pid, signal.SIGCONT)
        self.obeyed(asked)
        return len(asked)


class Remote:
    """The manager as the test sees it."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.control = control

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            self.control.send(json.dumps([name, arguments]).encode())
            return json.loads(self.control.recv(1 << 20))

        return ask

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        self.control.close()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the manager ended with {status}"


@contextlib.contextmanager
def running(
    node: Node, number: int = 0, worker: dict[str, int] | None = None, **rule: Any
) -> Iterator[Remote]:
    """A manager for `node` and its worker `number` here."""
    manager = node.manager(**rule)
    try:
        node.worker(manager, number, **(worker or {}))
        yield manager
        manager.close()
    except BaseException:
        with contextlib.suppress(OSError):
            os.kill(manager.pid, signal.SIGKILL)
        raise
    finally:
        sys.stdout.flush()
