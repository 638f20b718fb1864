"""The simulated world: one clock, one seeded random source, one heap of events, one trace.

Owns time and order.  Knows nothing of nodes or protocols.  Everything that happens in a simulation is
an event on this heap; events of the same instant run in the order in which they were planned, so a
seed determines a run completely.  The trace keeps the last happenings as tuples of integers and a
digest of all of them: two runs with the same digest did the same things at the same times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from random import Random
from typing import Any

from dsm.testing.simulation.trace import Entry, render

#: Entries of the trace that a failure shows.
TRACE_TAIL = 400
#: Methods that only put something into a queue: the kernel does so also for a stopped process.
KERNEL = frozenset(
    {
        "post",
        "deliver",
        "deliver_header",
        "deliver_end",
        "acknowledged",
        "worker_died",
        "drop_region",
        "die",
        "crash",
    }
)


class Violation(AssertionError):
    """A checker found that the protocol, its driver or the model broke a rule."""


class Timing:
    """How long things take, in nanoseconds; each seed draws its own.

    Most steps are short; a rare one is very long (a thread that lost its processor, a stopped
    process), which is where the interesting interleavings are.
    """

    __slots__ = ("link_high", "link_low", "link_tail", "page_high", "step_high", "step_tail", "tail_chance")

    def __init__(self, random: Random) -> None:
        #: One step of a worker or a manager.
        self.step_high = random.choice((300, 1_000, 4_000, 20_000))
        #: Chance that a step or a message takes from its tail instead.
        self.tail_chance = random.choice((0.0, 0.002, 0.01, 0.05))
        self.step_tail = random.choice((30_000, 300_000, 2_000_000))
        #: Flight of a message; links draw anew for each message, so they overtake each other.
        self.link_low = random.choice((500, 5_000, 20_000))
        self.link_high = self.link_low * random.choice((2, 4, 20))
        self.link_tail = self.link_high * random.choice((10, 50))
        #: The bytes of one page, on a link: fast, or so slow that whole transactions fit in between.
        self.page_high = self.link_high * random.choice((1, 1, 10, 100))


class World:
    """Clock, heap, random source and trace of one simulation."""

    def __init__(self, seed: int, *, timing: type[Timing] = Timing, keep: int = TRACE_TAIL) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.timing = timing(self.random)
        self.now = 0
        #: Events run so far.
        self.events = 0
        #: Hash over every trace entry so far.  Hashes of integers do not depend on the process.
        self.digest = 0
        self.tail: deque[Entry] = deque(maxlen=keep)
        self._values = 0
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        #: Stopped actors: they do nothing before that time.
        self._stopped: dict[Any, int] = {}
        #: The same of all that ever were.
        self._stops: dict[Any, int] = {}

    def after(self, delay: int, action: Callable[[Any], None], argument: Any = None) -> None:
        """Plan `action(argument)` for `delay` nanoseconds from now."""
        self._sequence += 1
        heappush(self._heap, (self.now + delay, self._sequence, action, argument))

    def at(self, time: int, action: Callable[[Any], None], argument: Any = None) -> None:
        """Plan `action(argument)` for `time`, or for now when that has passed."""
        self._sequence += 1
        heappush(self._heap, (max(time, self.now), self._sequence, action, argument))

    def forget(self, actors: list[Any]) -> None:
        """Take back every event that is planned for a method of one of `actors`: they died."""
        left = [entry for entry in self._heap if getattr(entry[2], "__self__", None) not in actors]
        self._heap[:] = left  # in place: `run` holds the list
        heapify(self._heap)

    def stop(self, actor: Any, span: int) -> None:
        """Let nothing that is planned for a method of `actor` happen within `span` nanoseconds."""
        until = max(self._stopped.get(actor, 0), self.now + span)
        self._stopped[actor] = self._stops[actor] = until
        self.at(until, self._continue, actor)

    def last_stop(self, actor: Any) -> int:
        """Return until when an actor was stopped last; 0: it never was."""
        return self._stops.get(actor, 0)

    def _continue(self, actor: Any) -> None:
        if self._stopped.get(actor, 0) <= self.now:
            self._stopped.pop(actor, None)

    def _deferred(self, action: Callable[[Any], None], argument: Any) -> bool:
        """Plan an event of a stopped actor anew, behind those that came before it."""
        until = self._stopped.get(getattr(action, "__self__", None), 0)
        if until <= self.now or action.__name__ in KERNEL:
            return False
        self.at(until, action, argument)
        return True

    def pause(self) -> int:
        """Nanoseconds of the next small step of a worker or a manager."""
        timing = self.timing
        random = self.random.random
        if timing.tail_chance and random() < timing.tail_chance:
            return 1 + int(random() * timing.step_tail)
        return 50 + int(random() * timing.step_high)

    def flight(self) -> int:
        """Nanoseconds that the next message spends on its link."""
        timing = self.timing
        random = self.random.random
        high = timing.link_high
        if timing.tail_chance and random() < timing.tail_chance:
            high = timing.link_tail
        return timing.link_low + int(random() * (high - timing.link_low))

    def fresh_value(self) -> int:
        """Return a value that no word of memory has held."""
        self._values += 1
        return 1_000 + self._values

    def note(self, what: int, node: int, a: int = 0, b: int = 0, c: int = 0, more: object = None) -> None:
        """Add an entry to the trace; `more` is shown but not part of the digest."""
        self.digest = hash((self.digest, self.now, what, node, a, b, c))
        self.tail.append((self.now, what, node, a, b, c, more))

    def run(self, max_events: int) -> None:
        """Run until nothing is planned; a `Violation` when `max_events` are not enough."""
        heap = self._heap
        stopped = self._stopped
        while heap:
            time, _, action, argument = heappop(heap)
            self.now = time
            self.events += 1
            if self.events > max_events:
                raise Violation(
                    f"no quiescence after {max_events} events ({time / 1e6:.1f} ms simulated): livelock?"
                )
            if not stopped or not self._deferred(action, argument):
                action(argument)

    def step(self) -> bool:
        """Run one event; False when nothing is planned."""
        if not self._heap:
            return False
        self.now, _, action, argument = heappop(self._heap)
        self.events += 1
        if not self._stopped or not self._deferred(action, argument):
            action(argument)
        return True

    def story(self, count: int = TRACE_TAIL) -> str:
        """Return the last `count` entries of the trace as text, one a line."""
        entries = list(self.tail)[-count:]
        return "\n".join(render(entry) for entry in entries)
