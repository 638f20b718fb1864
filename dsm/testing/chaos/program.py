"""The worker of a chaos job: ``python -m dsm.testing.chaos.program JOURNAL OPTIONS PARENT``.

Turns, drawn at random, until standard input says ``stop``: update the cells of a lock, look at a cell
without its lock, prefetch, pin; ``barrier`` makes it meet the others.  Does with each error what the
documentation says: after `PageTimeoutError` it tries the same again, what raises `PageLostError` is left
alone from then on, after `OwnerDiedError` it mends what the lock guards, after `BrokenBarrierError` it meets
nobody any more, after `NodeLostError` it ends, with `NODE_LOST_STATUS`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np

import dsm
from dsm.parent import die_with
from dsm.testing.chaos import cells
from dsm.testing.chaos.cells import Value
from dsm.testing.chaos.journal import NODE_LOST_STATUS, Journal, Kind, Outcome, outcome_of

#: Seconds of the timed waits for a lock.
LOCK_TIMEOUT_S = 0.5
#: Seconds after which a page that only times out is given up: no plan stops anything so long.
_GIVE_UP_S = 90.0
_TURN_S = 0.004


class Options(TypedDict):
    """What a worker is told; JSON."""

    seed: str
    home: str | int
    page_size: int


class Worker:
    """One worker's view of the cells."""

    def __init__(self, node: dsm.Node, journal: Journal, options: Options) -> None:
        self._node = node
        self._journal = journal
        self._random = random.Random(f"{options['seed']}/{node.rank}")
        page_size = options["page_size"]
        self._array: np.ndarray[Any, Any] = node.array(
            "cells", cells.words(page_size), "i8", page_size=page_size, home=options["home"]
        )
        self._words = [cells.first_word(cell, page_size) for cell in range(cells.CELLS)]
        self._locks = [node.lock(f"group {group}") for group in range(cells.GROUPS)]
        #: Locks and cells that are gone, as far as this worker knows.
        self._lost_locks: set[int] = set()
        self._lost_cells: set[int] = set()
        self._barrier_broken = False
        self._rounds = 0
        self._writer = node.rank + 1

    # -- steps -------------------------------------------------------------------------------------------

    def _step(
        self, kind: Kind, which: int, function: Callable[[], Any], words: Value = (0, 0, 0)
    ) -> tuple[Outcome, Any]:
        """Do one thing between two records; `NodeLostError` goes on to the caller."""
        self._journal.write(kind, Outcome.BEGIN, which, *words)
        try:
            result = function()
            self._node.check()
        except dsm.DSMError as error:
            outcome = outcome_of(error)
            self._journal.write(kind, outcome, which)
            if outcome in (Outcome.NODE_LOST, Outcome.OTHER):
                raise
            return outcome, None
        if kind in (Kind.READ, Kind.LOOK):
            words = result
        self._journal.write(kind, Outcome.OK, which, *words)
        return Outcome.OK, result

    def _insist(
        self, kind: Kind, cell: int, function: Callable[[], Any], words: Value = (0, 0, 0)
    ) -> tuple[Outcome, Any]:
        """Try the same access until the page comes, or is lost."""
        deadline = time.monotonic() + _GIVE_UP_S
        while True:
            outcome, result = self._step(kind, cell, function, words)
            if outcome != Outcome.PAGE_TIMEOUT or time.monotonic() > deadline:
                return outcome, result

    def _value(self, cell: int) -> Value:
        array, word = self._array, self._words[cell]
        return int(array[word]), int(array[word + 1]), int(array[word + 2])

    def _put(self, cell: int, value: Value) -> None:
        array, word = self._array, self._words[cell]
        array[word] = value[0]
        array[word + 1] = value[1]
        array[word + 2] = value[2]

    # -- turns -------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do one random thing."""
        kind = self._random.random()
        if kind < 0.6:
            group = self._random.randrange(cells.GROUPS)
            few = self._random.sample(
                cells.MEMBERS[group], self._random.randint(1, len(cells.MEMBERS[group]))
            )
            self.update(group, few)
        elif kind < 0.92:
            self._look(self._random.randrange(cells.CELLS))
        else:
            self._bulk(Kind.PREFETCH if kind < 0.96 else Kind.PIN)

    def update(self, group: int, few: list[int] | tuple[int, ...], write: bool = True) -> None:
        """Read, and mostly write, some cells under their lock."""
        if group in self._lost_locks:
            return
        timeout = self._random.choice((None, LOCK_TIMEOUT_S))
        outcome = self._acquire(group, timeout)
        if outcome not in (Outcome.OK, Outcome.OWNER_DIED):
            return
        if outcome == Outcome.OWNER_DIED:
            self._mend(group)
        for cell in few:
            self._update_cell(cell, write)
        self._step(Kind.RELEASE, group, self._locks[group].release)

    def _acquire(self, group: int, timeout: float | None) -> Outcome:
        milliseconds = -1 if timeout is None else int(timeout * 1000)

        def acquire() -> None:
            if not self._locks[group].acquire(timeout):
                raise dsm.WaitTimeoutError("not in time")

        outcome, _ = self._step(Kind.ACQUIRE, group, acquire, (milliseconds, 0, 0))
        if outcome == Outcome.PAGE_LOST:
            self._lost_locks.add(group)
        return outcome

    def _mend(self, group: int) -> None:
        """The holder died: make whole what it left half written, and the lock consistent."""
        for cell in cells.MEMBERS[group]:
            self._update_cell(cell, False, mending=True)
        self._locks[group].consistent()

    def _update_cell(self, cell: int, write: bool, mending: bool = False) -> None:
        if cell in self._lost_cells:
            return
        outcome, value = self._insist(Kind.READ, cell, lambda: self._value(cell))
        if outcome != Outcome.OK:
            self._lose(cell, outcome, mending)
            return
        if not write and cells.is_whole(cell, value):
            return
        counter = value[1] + 1
        new = (self._writer, counter, cells.checksum(cell, self._writer, counter))
        outcome, _ = self._insist(Kind.WRITE, cell, lambda: self._put(cell, new), new)
        if outcome != Outcome.OK:
            self._lose(cell, outcome, True)

    def _lose(self, cell: int, outcome: Outcome, may_be_half: bool) -> None:
        """Leave a cell alone that cannot be read or written here."""
        if may_be_half:
            self._journal.write(Kind.ABANDON, outcome, cell)
        if outcome == Outcome.PAGE_LOST:
            self._lost_cells.add(cell)

    def _look(self, cell: int) -> None:
        # Also at cells that this worker cannot update any more: a read copy that is here stays readable.
        self._step(Kind.LOOK, cell, lambda: self._value(cell))

    def _bulk(self, kind: Kind) -> None:
        cell = self._random.randrange(cells.CELLS)
        part = self._array[self._words[cell] : self._words[cell] + 3]
        write = self._random.random() < 0.5

        def pin() -> None:
            with self._node.pin(part, write=write):
                pass

        if kind == Kind.PIN:
            self._step(kind, cell, pin)
        else:
            self._step(kind, cell, lambda: self._node.prefetch(part, write=write))

    def barrier(self) -> None:
        """Meet all workers, unless one is known to have gone."""
        self._rounds += 1
        if not self._barrier_broken:
            outcome, _ = self._step(Kind.BARRIER, self._rounds, self._node.barrier)
            self._barrier_broken = outcome != Outcome.OK

    def finish(self) -> None:
        """Look at everything once more, and leave."""
        for group in range(cells.GROUPS):
            self.update(group, cells.MEMBERS[group], write=False)
        self._step(Kind.LEAVE, 0, self._node.close)


class Commands:
    """What standard input says; its end means stop."""

    def __init__(self) -> None:
        os.set_blocking(0, False)
        self._text = b""

    def take(self) -> list[str]:
        """Return the lines that have come since last time."""
        try:
            data = os.read(0, 4096)
        except BlockingIOError:
            return []
        *lines, self._text = (self._text + (data or b"stop\n")).split(b"\n")
        return [line.decode() for line in lines]


def main(journal_path: str, options: Options) -> int:
    """Work until told to stop, or until the node is lost; return the exit status."""
    journal = Journal(journal_path)
    commands = Commands()
    pause = random.Random()
    journal.write(Kind.ATTACH, Outcome.BEGIN)
    try:
        node = dsm.attach()
        worker = Worker(node, journal, options)
        journal.write(Kind.ATTACH, Outcome.OK)
        while True:
            for command in commands.take():
                if command == "barrier":
                    worker.barrier()
                else:
                    worker.finish()
                    return 0
            worker.turn()
            time.sleep(pause.random() * _TURN_S)
    except dsm.NodeLostError as error:
        print(f"worker ends: {error}", file=sys.stderr)
        return NODE_LOST_STATUS


if __name__ == "__main__":
    die_with(int(sys.argv[3]))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
