"""Two nodes that take pages from each other, served by one stand-in manager that checks each hand-over.

A single writer node a page, or many readers.  After a revocation is acknowledged the frame must not
change any more: it is compared with the copy that was taken when the page comes back.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import threading
import time
from collections.abc import Callable

import numpy as np
from fake import Node

from dsm import _native


class Bouncer:
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.epolls = [select.epoll() for _ in nodes]
        self.boards, self.tables, self.frames, self.done = [], [], [], []
        for node in nodes:
            board = _native.Board(node.node_fd, node.bell_fd)
            for number in range(node.workers):
                board.add(number, node.boards[number], node.nudges[number])
            region = node.regions[1]
            tables = _native.Tables(board, 1, region.pages, region.wanted_fd)
            for number in range(node.workers):
                tables.add(number, region.applied_fds[number])
            self.boards.append(board)
            self.tables.append(tables)
            self.frames.append(mmap.mmap(region.frames_fd, region.size))
            self.done.append([0] * node.workers)
        region = nodes[0].regions[1]
        self.size = 1 << region.shift
        #: The level of each page on each node.
        self.levels = [[0] * region.pages for _ in nodes]
        #: Which node has the newest bytes of each page, and a page's bytes as they were when a node lost it.
        self.newest = [0] * region.pages
        self.lost: list[dict[int, bytes]] = [{} for _ in nodes]
        self.waiting: list[tuple[int, list[int]]] = []
        self.moves = 0

    def poll(self) -> bool:
        found = False
        for number, board in enumerate(self.boards):
            events, _ = board.wait(self.epolls[number].fileno(), 0, 0)
            for at in range(0, len(events), 8):
                event = events[at : at + 8]
                found = True
                if event[2] == _native.OP_DONE:
                    self.done[number][event[0]] = event[4]
                else:
                    self.waiting.append((number, event))
        return found

    def obeyed(self, number: int, asked: list[tuple[int, int]]) -> None:
        deadline = time.monotonic() + 10
        while any(self.done[number][worker] < sequence for worker, sequence in asked):
            if not self.poll():
                os.sched_yield()
            assert time.monotonic() < deadline, "not obeyed"

    def page(self, number: int, page: int) -> bytes:
        return self.frames[number][page * self.size : (page + 1) * self.size]

    def take(self, number: int, page: int, level: int) -> None:
        """Lower a node's page to `level`; afterwards nobody there writes it."""
        if self.levels[number][page] <= level:
            return
        self.obeyed(number, self.tables[number].lower(page, 1, level))
        self.levels[number][page] = level
        self.lost[number][page] = self.page(number, page)

    def grant(self, number: int, page: int, level: int) -> None:
        if page in self.lost[number]:
            assert self.lost[number].pop(page) == self.page(number, page), "written after the acknowledgement"
        newest = self.newest[page]
        if newest != number:
            self.take(newest, page, _native.READ if level == _native.READ else 0)
            if self.levels[number][page] == 0:
                self.frames[number][page * self.size : (page + 1) * self.size] = self.page(newest, page)
            self.moves += 1
        if level == _native.WRITE:
            for other in range(len(self.nodes)):
                if other != number:
                    self.take(other, page, 0)
            self.newest[page] = number
        self.levels[number][page] = max(self.levels[number][page], level)
        self.tables[number].raise_(page, 1, level)

    def serve(self, number: int, event: list[int]) -> None:
        worker, slot, op, _, page = event[:5]
        level = _native.WRITE if op == _native.OP_FAULT_WRITE else _native.READ
        if self.levels[number][page] < level:
            self.grant(number, page, level)
        self.boards[number].complete(worker, slot, 0)
        deadline = time.monotonic() + 0.002  # as the hold time would: the instruction gets its page
        while self.boards[number].unapplied(worker, slot) and time.monotonic() < deadline:
            os.sched_yield()

    def run(self, finished: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not finished():
            assert time.monotonic() < deadline, "the workers do not end"
            if not self.poll() and not self.waiting:
                os.sched_yield()
            while self.waiting:
                self.serve(*self.waiting.pop(0))
        for page in range(len(self.newest)):
            self.grant(0, page, _native.WRITE)  # everything is brought to node 0


def work(
    helper: ctypes.CDLL, node: Node, worker: int, words: range, rounds: int, gate: tuple[int, int]
) -> int:
    """Write from as many threads as there are words; returns how many writes were lost."""
    node.worker(None, worker)
    os.close(gate[1])
    os.read(gate[0], 1)  # all begin together
    region = node.regions[1]
    lost: list[int] = []

    def bounce(word: int) -> None:
        size = 1 << region.shift
        lost.append(helper.bounce(region.address, region.pages, size, word, rounds, word * 7919, 1))

    threads = [threading.Thread(target=bounce, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(lost) + len(threads) - len(lost)


def play(helper: ctypes.CDLL, pages: int, shift: int, workers: int, threads: int, rounds: int) -> Bouncer:
    nodes = [Node(workers) for _ in range(2)]
    for node in nodes:
        node.region(pages=pages, shift=shift)
    pipes, children = [], []
    gate = os.pipe()
    for n, node in enumerate(nodes):
        for w in range(workers):
            first = 8 + (n * workers + w) * threads
            done, leave = os.pipe(), os.pipe()
            child = os.fork()
            if child == 0:
                os.close(leave[1])
                for _, other in pipes:
                    os.close(other)
                lost = work(helper, node, w, range(first, first + threads), rounds, gate)
                os.write(done[1], b"x")
                os.read(leave[0], 1)  # its service thread must obey until the end
                os._exit(1 if lost else 0)
            os.close(leave[0])
            os.set_blocking(done[0], False)
            pipes.append((done[0], leave[1]))
            children.append(child)
    os.close(gate[1])
    working = {done for done, _ in pipes}

    def finished() -> bool:
        for done in list(working):
            with contextlib.suppress(BlockingIOError):
                os.read(done, 1)
                working.discard(done)
        return not working

    bouncer = Bouncer(nodes)
    bouncer.run(finished)
    for _, leave in pipes:
        os.close(leave)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children), "writes were lost"
    words = np.frombuffer(bouncer.frames[0], "u8").reshape(pages, -1)
    total = 2 * workers * threads * rounds
    assert words[:, 8 : 8 + 2 * workers * threads].sum() == total
    assert words[:, 0].sum() == total, "atomic additions were lost"
    assert bouncer.moves > 50
    return bouncer
