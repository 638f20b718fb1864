"""The model of a node: the manager that drives a coherence engine.

Owns what the manager sees and in which order it acts: one stimulus at a time, its effects strictly in
order (what each of them does is in `effects`).  `Lower` is two steps, write the wanted table and read the
applied tables, so that workers can come between; it then waits for the workers that were asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm.coherence.engine import Engine
from dsm.coherence.messages import (
    Effect,
    Kind,
    Lower,
    LowerRuns,
    Message,
)
from dsm.errors import Status
from dsm.testing.simulation.effects import Performer
from dsm.testing.simulation.frames import NodeRegion
from dsm.testing.simulation.membership import Members
from dsm.testing.simulation.network import Network, Transfer
from dsm.testing.simulation.program import PIN, PREFETCH, Call
from dsm.testing.simulation.trace import What, message_text
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.worker import LEVEL, LOCKED, Worker
from dsm.testing.simulation.world import Violation, World
from dsm.types import Region

if TYPE_CHECKING:
    from dsm.testing.simulation.thread import Thread

#: A stimulus of the manager: who handles it, and what it is.
Stimulus = tuple[Callable[[Any], None], Any]

_FETCH, _INVALIDATE = int(Kind.FETCH), int(Kind.INVALIDATE)


class Node(Performer):
    """One node: its manager and its frames."""

    def __init__(self, world: World, network: Network, number: int, engine: Engine) -> None:
        super().__init__(world, network, number)
        self.engine = engine
        self.inbox: deque[Stimulus] = deque()
        self.effects: deque[Effect] = deque()
        self._busy = False
        self._waiters = 0
        self._commands = 0
        #: Commands that are still to be acknowledged, for each token.
        self.lowering: dict[int, set[tuple[int, int]]] = {}
        self._alarm: int | None = None
        #: The node is gone, with everything on it.
        self.dead = False
        #: Effects until it crashes; 0: it does not.
        self.fuse = 0
        #: Nanoseconds between two calls of `Engine.age`.
        self.age_interval = 0
        self._aging = False
        #: Effects that take time: what is done first, and what when it has passed.
        self.halves: dict[type, tuple[Callable[[Any], None], Callable[[Any], None]]] = {
            Lower: (self.begin_lower, self.finish_lower)
        }

    def add_region(self, region: Region, truth: Truth, fill: int) -> None:
        """Make a region known here and map it in every worker."""
        home = self.regions[region.region] = self.make_region(region, truth, fill)
        self.engine.add_region(region)
        if region.members == (self.number,) and not region.options.fill:
            # A fresh memfd reads as zeros, and the engine counts on it where nobody else can ask.
            home.frames = [[0] * home.words for _ in range(home.pages)]
        for worker in self.workers:
            worker.add_region(home)
        self.collect()
        self._continue(None)

    def make_region(self, region: Region, truth: Truth, fill: int) -> NodeRegion:
        """Return the frames of a region."""
        return NodeRegion(region.region, truth, fill)

    # -- slots ------------------------------------------------------------------------------------

    def allocate(self, thread: Thread) -> int:
        """Return a fresh waiter for `thread`."""
        self._waiters += 1
        waiter = self._waiters
        self.slots[waiter] = thread
        if self.patience and not self._aging:
            self._aging = True
            self.world.after(self.age_interval, self._age_due)
        return waiter

    def release(self, waiter: int) -> None:
        """The thread has freed its slot: its grant is applied."""
        self.world.note(What.FREE, self.number, self.slots[waiter].number, waiter)
        del self.slots[waiter]

    # -- event loop -------------------------------------------------------------------------------

    def post(self, stimulus: Stimulus) -> None:
        """Something for the manager to see."""
        if self.dead:
            return
        self.inbox.append(stimulus)
        if not self._busy:
            self._busy = True
            self.world.after(self.world.pause(), self._step)

    def _step(self, _: Any) -> None:
        handler, what = self.inbox.popleft()
        handler(what)
        self.collect()
        self._continue(None)

    def collect(self) -> None:
        """Take what the engine wants done, and when it wants to be called again."""
        engine = self.engine
        self.effects.extend(engine.take())
        deadline = engine.deadline
        if deadline is not None and (self._alarm is None or deadline < self._alarm):
            self._alarm = deadline
            self.world.at(deadline + self.world.pause(), self._ring, deadline)

    def _continue(self, _: Any) -> None:
        """Do effects in order; one that takes time is finished before the next begins."""
        effects = self.effects
        world = self.world
        while effects:
            effect = effects.popleft()
            world.note(What.EFFECT, self.number, len(effects), 0, 0, effect)
            halves = self.halves.get(type(effect))
            if halves is not None:
                halves[0](effect)
                world.after(world.pause(), self._second_half, effect)
                return
            self.perform(effect)
            if self.fuse:
                self.fuse -= 1
                if not self.fuse:
                    self.crash()
                    return
        if self.inbox:
            world.after(world.pause(), self._step)
        else:
            self._busy = False

    def _second_half(self, effect: Effect) -> None:
        self.halves[type(effect)][1](effect)
        self._continue(None)

    def _ring(self, deadline: int) -> None:
        if self._alarm != deadline:
            return
        self._alarm = None
        self.post((self.tick, None))

    def tick(self, _: Any) -> None:
        """The time the engine asked for has come."""
        engine = self.engine
        self.world.note(What.TICK, self.number)
        self.poll()
        engine.tick(self.world.now)
        if engine.deadline is not None and engine.deadline <= self.world.now:
            raise Violation(
                f"node {self.number}: tick at {self.world.now} left the deadline at {engine.deadline}"
            )

    def _age_due(self, _: Any) -> None:
        self.post((self.age, None))

    def age(self, _: Any) -> None:
        """Waits grow older; the engine ends those that are too old."""
        self.check_ages()
        self.ages += 1
        self.world.note(What.AGE, self.number, self.ages)
        self.engine.age(self.world.now)
        self._aging = bool(self.slots)
        if self._aging:
            self.world.after(self.age_interval, self._age_due)

    def check_ages(self) -> None:
        """No wait is older than it may be."""
        for waiter, thread in self.slots.items():
            if thread.waits_for_page and 0 <= thread.asked < self.ages - self.patience - 1:
                raise Violation(f"node {self.number}: waiter {waiter} waits too long: {thread.describe()}")

    def poll(self) -> None:
        """Tell the engine which grants its workers have applied by now."""
        engine = self.engine
        for waiter in list(engine.unapplied):
            if waiter not in self.slots:
                self.world.note(What.APPLIED, self.number, waiter)
                engine.applied(waiter, self.world.now)

    # -- from workers -----------------------------------------------------------------------------

    def fault(self, what: tuple[Thread, int, int, bool]) -> None:
        """A worker's fault arrives."""
        thread, number, page, write = what
        if thread.worker.dead:
            return
        if self.regions[number].dropped:
            thread.woken(Status.CLOSED)
            return
        thread.asked = self.ages
        ip = thread.program[thread.position].ip  # type: ignore[union-attr]
        self.engine.fault(number, page, write, thread.waiter, thread.worker.number, ip, self.world.now)

    def call(self, what: tuple[Thread, Call]) -> None:
        """A worker's prefetch, pin or unpin arrives."""
        thread, call = what
        now = self.world.now
        if thread.worker.dead:
            return
        thread.asked = self.ages
        if self.regions[call.region].dropped:
            thread.woken(Status.CLOSED)
        elif call.kind == PREFETCH:
            self.engine.prefetch(call.region, call.page, call.count, call.write, thread.waiter, now)
        elif call.kind == PIN:
            self.engine.pin(call.region, call.page, call.count, call.write, thread.waiter, now)
        else:
            self.engine.unpin(call.region, call.page, call.count, call.write, now)
            self._unpinned(thread.worker, call)
            thread.woken(Status.OK)

    def _unpinned(self, worker: Worker, call: Call) -> None:
        """Forget one pin with these arguments."""
        wanted = call.region, call.page, call.count, call.write
        for pin in self.pins[worker]:
            if (pin.region, pin.page, pin.count, pin.write) == wanted:
                self.pins[worker].remove(pin)
                return

    def cancel(self, waiter: int) -> None:
        """A worker wants its call to end."""
        thread = self.slots.get(waiter)
        if thread is not None and thread.worker.dead:
            return
        known = self.engine.cancel(waiter, self.world.now)
        if known and (thread is None or not thread.waiting):
            raise Violation(f"node {self.number}: cancel found waiter {waiter}, which does not wait")

    def worker_died(self, worker: Worker) -> None:
        """The pidfd of a worker fires."""
        self.post((self._bury, worker))

    def _bury(self, worker: Worker) -> None:
        """A dead worker waits for nothing, holds nothing, and has obeyed every command."""
        self.world.note(What.BURIED, self.number, worker.number)
        gone = {waiter for waiter, thread in self.slots.items() if thread.worker is worker}
        for waiter in gone:
            del self.slots[waiter]
        now = self.world.now
        self.engine.worker_gone(gone.__contains__, worker.number, now)
        for call in self.pins.pop(worker, []):
            if not self.regions[call.region].dropped:
                self.engine.unpin(call.region, call.page, call.count, call.write, now)
        self.workers.remove(worker)
        for number, region in worker.regions.items():
            self.regions[number].workers.remove(region)
        for token, asked in list(self.lowering.items()):
            asked -= {each for each in asked if each[0] == worker.number}
            if not asked:
                del self.lowering[token]
                self.lowered(token)

    def touched(self, what: tuple[int, int, Worker]) -> None:
        """A worker used a marked page."""
        number, page, worker = what
        self.world.note(What.TOUCHED, self.number, worker.number, number, page)
        if not self.regions[number].dropped and not worker.dead:
            self.engine.touched(number, page, worker.number, self.world.now)

    def acknowledged(self, what: tuple[int, int]) -> None:
        """A worker has obeyed a command."""
        self.post((self._acknowledged, what))

    def _acknowledged(self, what: tuple[int, int]) -> None:
        for token, asked in self.lowering.items():
            if what in asked:
                asked.remove(what)
                if not asked:
                    del self.lowering[token]
                    self.lowered(token)
                return

    def lowered(self, token: int) -> None:
        """Every worker has obeyed."""
        self.world.note(What.LOWERED, self.number, token)
        self.engine.lowered(token, self.world.now)

    # -- from the network -------------------------------------------------------------------------

    def deliver(self, what: tuple[int, Any]) -> None:
        """A message without pages arrives."""
        self.post((self._message, what))

    def deliver_header(self, transfer: Transfer) -> None:
        """The header of a message with pages arrives."""
        self.post((self.header, transfer))

    def deliver_end(self, transfer: Transfer) -> None:
        """The last byte of a message with pages arrives."""
        self.post((self.end, transfer))

    def _message(self, what: tuple[int, Message | Members]) -> None:
        sender, message = what
        if sender in self.closed:
            return
        if isinstance(message, Members):
            self.lost(message.lost)
            return
        self.world.note(What.MESSAGE, self.number, sender, message.kind, message.page, message)
        if message.kind == _FETCH or message.kind == _INVALIDATE:
            self.poll()
        if self.losses.gone:
            self.losses.gets(message)
        self.engine.message(message, self.world.now)
        if self.losses.gone:
            self.losses.answers(message, self.engine.effects)

    def header(self, transfer: Transfer) -> None:
        """Ask where the payload goes: straight into the frames, or to scratch.  Its first half is here."""
        if transfer.sender.number in self.closed:
            return
        message = transfer.message
        transfer.accepted = self.engine.accepts(message)
        self.world.note(What.HEADER, self.number, transfer.sender.number, transfer.accepted, 0, message)
        if transfer.accepted:
            self.store(transfer, transfer.region.words // 2)

    def end(self, transfer: Transfer) -> None:
        """The whole payload is here; what is still wanted of it is put, or copied, into its frames."""
        if transfer.sender.number in self.closed:
            return
        message = transfer.message
        what = What.RECEIVED if transfer.accepted else What.DRAINED
        self.world.note(what, self.number, transfer.sender.number, message.page, message.count, message)
        self.store(transfer, transfer.region.words)
        self.engine.received(message, self.world.now)

    def store(self, transfer: Transfer, words: int) -> None:
        """Put the first `words` words of each page that is still wanted into its frame."""
        message = transfer.message
        home = self.regions[message.region]
        for first, count in self.engine.wanted_runs(message):
            if first < message.page or first + count > message.page + message.count:
                raise Violation(f"wanted_runs of {message_text(message)} names pages {first} + {count}")
            for page in range(first, first + count):
                home.truth.overwritten(self.number, page, "receives into")
                home.changed(page)
                home.doomed.discard(page)
                home.frames[page][:words] = transfer.payload[page - message.page][:words]

    def sent(self, transfer: Transfer) -> None:
        """The last byte of a transfer has left: its frames are free."""
        message = transfer.message
        self.world.note(What.SENT, self.number, transfer.receiver.number, message.page, 0, message)
        home = transfer.region
        for page in range(message.page, message.page + message.count):
            transfers = home.sending[page]
            transfers.remove(transfer)
            if not transfers:
                del home.sending[page]
                if page in home.doomed:
                    home.doomed.remove(page)
                    home.destroy(page)

    # -- other nodes that are gone, and this one --------------------------------------------------

    def suspect(self, number: int) -> None:
        """Node `number` has been silent for a while: no reason to do anything."""

    def lost(self, number: int) -> None:
        """The coordinator declared a node dead, and this node hears of it."""
        self.world.note(What.LOST, self.number, number)
        self.close(number)
        self.losses.hears(self.engine, number)
        self.engine.node_lost(number, self.world.now)

    def close(self, number: int) -> None:
        """Nothing goes there any more, nothing comes from there."""
        self.closed.add(number)
        self.network.closed(self.number, number)

    def crash(self, _: Any = None) -> None:
        """The manager, its workers and its frames are gone at this instant."""
        if self.dead:
            return
        self.world.note(What.CRASH, self.number)
        self.dead = True
        for worker in self.workers:
            worker.end()
        self.world.forget([self, *self.workers, *[t for worker in self.workers for t in worker.threads]])
        self.losses.node_gone(self.number)
        self.network.crashed(self.number)

    # -- `Lower`, in two steps --------------------------------------------------------------------

    def finish_lower(self, effect: Lower) -> None:
        """Second half: ask every worker that has more, or is about to decide."""
        self.await_workers(effect.token, self.ask_workers(effect, effect.page, effect.count))

    def ask_workers(self, effect: Lower | LowerRuns, page: int, count: int) -> set[tuple[int, int]]:
        """Post a command to every worker that has more of these pages; return worker and number of each."""
        home = self.regions[effect.region]
        level = int(effect.level)
        asked: set[tuple[int, int]] = set()
        for worker, region in zip(self.workers, home.workers, strict=True):
            for byte in region.applied[page : page + count]:
                if byte & LOCKED or byte & LEVEL > level:
                    self._commands += 1
                    asked.add((worker.number, self._commands))
                    self.world.note(What.ASK, self.number, worker.number, self._commands, effect.token)
                    worker.command(self._commands, region, page, count)
                    break
        return asked

    def await_workers(self, token: int, asked: set[tuple[int, int]]) -> None:
        """Tell the engine once all these commands are obeyed."""
        if token in self.lowering:
            raise Violation(f"node {self.number}: token {token} is in use")
        if asked:
            self.lowering[token] = asked
            return
        # Nobody to wait for: the engine may hear of it now (what it wants then comes after the rest of
        # this batch), or before or after what waits already.
        match self.world.random.randrange(3):
            case 0:
                self.lowered(token)
                self.collect()
            case 1:
                self.inbox.appendleft((self.lowered, token))
            case _:
                self.inbox.append((self.lowered, token))

    # -- the end of a region ----------------------------------------------------------------------

    def drop_region(self, number: int) -> None:
        """The metadata store says that the region was destroyed."""
        self.post((self._drop, number))

    def _drop(self, number: int) -> None:
        self.world.note(What.DROP, self.number, number)
        home = self.regions[number]
        self.engine.drop_region(number)
        home.dropped = True
        home.truth.forget(self.number)
        for worker in self.workers:
            self.world.after(self.world.pause() * 5, worker.close_region, number)
