"""The model of a thread of a worker: its program, and the fault handler it runs when it traps.

Owns one program counter and one slot of the worker board.  Each step of the handler is an event:
trap, lock the page, read what is wanted; if that is not enough, unlock, post the fault and wait;
woken, lock again, read what is wanted, map (with the neighbours that may be mapped too), store and
unlock, free the slot, run the instruction again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsm.errors import Status
from dsm.testing.simulation.program import (
    CALL_NAMES,
    INCREMENT,
    MERGE,
    PIN,
    SUCCESSOR,
    UNIQUE,
    UNPIN,
    Call,
    Operation,
    Touch,
)
from dsm.testing.simulation.trace import What, pages
from dsm.testing.simulation.truth import READ, WRITE
from dsm.testing.simulation.worker import LEVEL, LOCKED, MARK, PINNED, Worker, WorkerRegion
from dsm.testing.simulation.world import Violation

#: Neighbours that a handler maps along with its own page, on each side.
AROUND = 8
#: How often a thread repeats a prefetch or pin that comes too late; an access is repeated until it is done.
TRIES = 3

_OK, _CLOSED, _CANCELLED = int(Status.OK), int(Status.CLOSED), int(Status.CANCELLED)
_PAGE_LOST, _PAGE_TIMEOUT = int(Status.PAGE_LOST), int(Status.PAGE_TIMEOUT)


class Thread:
    """One thread."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker = worker
        self.world = worker.world
        self.node = worker.node
        #: In the whole cluster.
        self.number = number
        self.program: list[Operation] = []
        #: Index of the next operation.
        self.position = 0
        self.finished = True
        #: What each read returned, in order, for litmus tests; None: not kept.
        self.observed: list[int] | None = None
        #: What the last read returned.
        self.register = 0
        #: The slot in use; 0: none.
        self.waiter = 0
        #: The slot was posted and its answer has not come.
        self.waiting = False
        self.status = _OK
        #: How old the node was when its manager saw the fault or call; -1: it has not seen it.
        self.asked = -1
        #: How often the call was too late in a row.
        self._tries = 0
        self._page = 0
        self._need = READ
        self._held: list[tuple[int, int]] = []

    def start(self, program: list[Operation], delay: int = 0) -> None:
        """Run `program` from `delay` nanoseconds from now on."""
        self.program = program
        self.position = 0
        self.finished = False
        self.world.after(delay + self.world.pause(), self.step)

    def describe(self) -> str:
        """Say where the thread is, for reports."""
        place = f"thread {self.number} (node {self.node.number}, worker {self.worker.number})"
        if self.finished:
            return f"{place} has finished"
        operation = self.program[self.position]
        if isinstance(operation, Touch):
            doing = (
                f"r{operation.region} {' '.join(f'p{page} level {level}' for page, level in operation.needs)}"
            )
        else:
            name = CALL_NAMES.get(operation.kind, operation.kind)
            doing = f"{name} r{operation.region} {pages(operation.page, operation.count)}"
        waits = f"waiter {self.waiter}, waiting {self.waiting}"
        return f"{place} at {self.position}/{len(self.program)}: {doing}; {waits}"

    @property
    def waits_for_page(self) -> bool:
        """It is in a fault (a call may last longer than a fault may: it comes forward page by page)."""
        return self.waiting and isinstance(self.program[self.position], Touch)

    def waits_for(self) -> range:
        """Return the pages that its fault or call is about."""
        operation = self.program[self.position]
        if isinstance(operation, Call):
            return range(operation.page, operation.page + operation.count)
        return range(self._page, self._page + 1)

    # -- program ----------------------------------------------------------------------------------

    def step(self, _: Any = None) -> None:
        """Run the next operation, or run it again."""
        if self.position >= len(self.program):
            self.finished = True
            self.world.note(What.DONE, self.node.number, self.number)
            return
        operation = self.program[self.position]
        region = self.worker.regions[operation.region]
        if region.closed:
            self.world.note(What.CLOSED, self.node.number, self.number, region.number)
            self._skip(operation)
        elif isinstance(operation, Touch):
            self._touch(operation, region)
        else:
            self._call(operation, region)

    def _next(self, think: int = 0) -> None:
        self.position += 1
        self.world.after(think + self.world.pause(), self.step)

    def _skip(self, operation: Operation) -> None:
        if isinstance(operation, Call):
            self.position += operation.skip
        self._next()

    def _touch(self, operation: Touch, region: WorkerRegion) -> None:
        protection = region.protection
        for page, level in operation.needs:
            if protection[page] < level:
                self._trap(region, page, level)
                return
        home = region.home
        if not home.dropped:
            self._access(operation, region)
        self._next(operation.think)

    def _access(self, operation: Touch, region: WorkerRegion) -> None:
        home = region.home
        truth = home.truth
        node = self.node.number
        note = self.world.note
        for page, word, value in operation.accesses:
            frame = home.frames[page]
            found = frame[word]
            if value is None or value == INCREMENT:
                truth.read(node, page, word, found)
                note(What.READ, node, self.number, region.number, page, found)
                self.register = found
                if self.observed is not None:
                    self.observed.append(found)
            if value is not None:
                if value == UNIQUE:
                    value = self.world.fresh_value()
                elif value == INCREMENT:
                    value = found + 1
                elif value == SUCCESSOR:
                    value = self.register + 1
                if page in home.sending:
                    home.changed(page)
                frame[word] = value
                truth.stored(node, page, word, value)
                note(What.WRITE, node, self.number, region.number, page, value)

    # -- fault handler ----------------------------------------------------------------------------

    def _trap(self, region: WorkerRegion, page: int, level: int) -> None:
        world = self.world
        world.note(
            What.TRAP, self.node.number, self.number, region.number, page, "writing" if level == WRITE else ""
        )
        if not region.home.dropped and level <= max(region.pins.get(page, ()), default=0):
            raise Violation(f"region {region.number} page {page}: a pinned page traps (thread {self.number})")
        self._page = page
        self._need = level
        self.waiter = 0
        world.after(world.pause(), self._lock, self._probe)

    def _region(self) -> WorkerRegion:
        return self.worker.regions[self.program[self.position].region]

    def _lock(self, then: Callable[[Any], None]) -> None:
        applied = self._region().applied
        world = self.world
        if applied[self._page] & LOCKED:
            world.after(world.pause(), self._lock, then)
            return
        applied[self._page] |= LOCKED
        world.note(What.LOCK, self.node.number, self.worker.number, self._region().number, self._page)
        world.after(world.pause(), then)

    def _probe(self, _: Any) -> None:
        """Under the page lock: is what is wanted enough already?"""
        region = self._region()
        wanted = self.worker.wanted(region, self._page)
        if wanted & LEVEL >= self._need or region.closed:
            self._take(wanted)
            return
        region.applied[self._page] &= ~LOCKED & 0xFF
        self.post(self.node.fault, (region.number, self._page, self._need == WRITE))

    def post(self, handler: Callable[[Any], None], what: tuple[Any, ...]) -> None:
        """Post a slot that the manager gives to `handler`."""
        world = self.world
        self.waiter = self.node.allocate(self)
        self.waiting = True
        self.asked = -1
        world.note(What.POST, self.node.number, self.number, self.waiter)
        world.after(world.pause(), self.node.post, (handler, (self, *what)))

    def woken(self, status: int) -> None:
        """The manager completes the slot, perhaps of a worker whose death it has not heard of."""
        if self.worker.dead:
            return
        self.waiting = False
        self.status = status
        self.world.after(self.world.pause(), self._woken)

    def _woken(self, _: Any) -> None:
        self.world.note(What.WAKE, self.node.number, self.number, self.waiter, self.status)
        operation = self.program[self.position]
        if isinstance(operation, Call):
            self._answered(operation)
        elif self.status == _OK:
            self._lock(self._granted)
        elif self.status == _PAGE_LOST or (self.status == _CLOSED and self._region().home.dropped):
            self.node.release(self.waiter)
            self._skip(operation)
        elif self.status == _PAGE_TIMEOUT:
            self._again()
        else:
            raise Violation(f"{self.describe()}: a fault ends with status {self.status}")

    def _again(self) -> None:
        """The page did not come in time: run the operation again."""
        self.node.release(self.waiter)
        self.waiter = 0
        self.world.after(self.world.pause(), self.step)

    def _granted(self, _: Any) -> None:
        """Under the page lock: what is wanted now, which may be less than what was granted."""
        self._take(self.worker.wanted(self._region(), self._page))

    def _take(self, wanted: int) -> None:
        region = self._region()
        world = self.world
        if wanted & MARK:
            region.home.wanted[self._page] &= ~MARK & 0xFF
            world.after(
                world.pause(), self.node.post, (self.node.touched, (region.number, self._page, self.worker))
            )
        self._held = [(self._page, wanted & LEVEL)]
        for step in (1, -1):
            page = self._page + step
            while (
                0 <= page < region.home.pages
                and abs(page - self._page) <= AROUND
                and self._neighbour(region, page)
            ):
                page += step
        world.after(world.pause(), self._protect)

    def _neighbour(self, region: WorkerRegion, page: int) -> bool:
        """Lock a neighbour and read what is wanted, if it is worth mapping."""
        wanted = self.worker.wanted(region, page)
        applied = region.applied[page]
        if applied & (LOCKED | PINNED) or wanted & MARK or applied & LEVEL >= wanted & LEVEL:
            return False
        region.applied[page] |= LOCKED
        self._held.append((page, wanted & LEVEL))
        return True

    def _protect(self, _: Any) -> None:
        region = self._region()
        world = self.world
        for page, level in self._held:
            world.note(What.PROTECT, self.node.number, self.worker.number, region.number, page, level)
            self.worker.protect(region, page, level)
        world.after(world.pause(), self._store)

    def _store(self, _: Any) -> None:
        applied = self._region().applied
        for page, level in self._held:
            applied[page] = applied[page] & PINNED | level
        self.world.after(self.world.pause(), self._free)

    def _free(self, _: Any) -> None:
        if self.waiter:
            self.node.release(self.waiter)
            self.waiter = 0
        self.world.after(self.world.pause(), self.step)

    # -- calls ------------------------------------------------------------------------------------

    def _call(self, call: Call, region: WorkerRegion) -> None:
        where = (
            f"{CALL_NAMES[call.kind]} r{call.region} {pages(call.page, call.count)}{' write' * call.write}"
        )
        self.world.note(What.CALL, self.node.number, self.number, call.kind, call.page, where)
        if call.kind == MERGE:
            self.worker.drop_maps(region, call.page, call.count)
            self._next()
            return
        if call.kind == UNPIN:
            for page in range(call.page, call.page + call.count):
                self.worker.unpin(region, page, WRITE if call.write else READ)
        self.post(self.node.call, (call,))
        if call.patience:
            self.world.after(call.patience, self._cancel, self.waiter)

    def _cancel(self, waiter: int) -> None:
        if self.waiter == waiter and self.waiting:
            self.node.post((self.node.cancel, waiter))

    def _answered(self, call: Call) -> None:
        region = self._region()
        if self.status == _OK and call.kind == PIN:
            self._page = call.page
            self._apply_pinned(call)
            return
        if self.status == _PAGE_TIMEOUT and self._tries < TRIES:
            self._tries += 1
            self._again()
            return
        self._tries = 0
        self.node.release(self.waiter)
        self.waiter = 0
        if self.status == _OK:
            self._next()
        elif (
            self.status in (_PAGE_LOST, _PAGE_TIMEOUT)
            or (self.status == _CLOSED and region.home.dropped)
            or (self.status == _CANCELLED and call.patience)
        ):
            self._skip(call)
        else:
            raise Violation(f"{self.describe()}: a call ends with status {self.status}")

    def _apply_pinned(self, call: Call) -> None:
        region = self._region()
        world = self.world
        if self.worker.apply_pinned(region, self._page, WRITE if call.write else READ):
            self._page += 1
        if self._page < call.page + call.count:
            world.after(world.pause(), self._apply_pinned, call)
            return
        self.node.release(self.waiter)
        self.waiter = 0
        self._next()
