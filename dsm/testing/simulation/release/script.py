"""Scripted traces of release consistency: what `dsm.testing.simulation.script` has, and these commands.

There is no memory here: every page of a `Diff` counts as changed, unless its node was told ``unchanged``.

========================================  =========================================================
``cluster nodes=3 pages=4 home=0``         as there; also ``log=2``, intervals of a node that logs keep
``release n1 t5``                          n1 releases; ends with Released
``acquire n1 t6 n0``                       n1 acquires what n0 has acquired and released; ends with Acquired
``unchanged n1``                           the frames of n1's next `Diff` are as their twins
``rehome n1 p0+2 w9``                      n1 asks for the homes of pages
``log n1``                                 n1's time, and the notices that it keeps
``pages p0+2``                             states, homes and copysets
========================================  =========================================================
"""

from __future__ import annotations

import numpy as np

from dsm.coherence.engine import Engine
from dsm.coherence.messages import Diff, Forward, Kind, LowerRuns, Message, Runs
from dsm.coherence.release.intervals import Log
from dsm.coherence.release.runs import count_of
from dsm.coherence.states import State
from dsm.testing.simulation.script import REGION, Script, number_of, range_of
from dsm.testing.simulation.trace import message_text, runs_text, time_text

_NO_RUNS = np.empty((0, 2), np.int64)


class ReleaseScript(Script):
    """Engines and links of one file."""

    consistency = "release"

    def __init__(self) -> None:
        super().__init__()
        #: Messages with changed bytes, by identity: the pages that they are about.
        self.diffs: dict[int, tuple[Message, Runs]] = {}
        #: Nodes whose next diff finds nothing.
        self.unchanged: set[int] = set()

    def collect(self, engine: Engine) -> None:
        """Record the effects of an engine, and do what is done at once."""
        answered = True
        while answered:
            effects = list(engine.effects)
            super().collect(engine)
            answered = False
            for effect in effects:
                if isinstance(effect, LowerRuns):
                    self.lowering[engine.node].append(effect.token)
                elif isinstance(effect, Forward):
                    self._send_diff(engine.node, effect.node, effect.message, effect.runs)
                elif isinstance(effect, Diff):
                    self._diff(engine, effect)
                    answered = True

    def _diff(self, engine: Engine, effect: Diff) -> None:
        if engine.node in self.unchanged:
            self.unchanged.discard(engine.node)
            engine.diffed(effect.region, effect.request, _NO_RUNS, 0, self.now)
            return
        low, high = int(effect.runs[0, 0]), int(effect.runs[-1].sum())
        message = Message(int(Kind.DIFF), effect.region, low, high - low, effect.request, engine.node)
        self._send_diff(engine.node, effect.node, message, effect.runs)
        engine.diffed(effect.region, effect.request, effect.runs, count_of(effect.runs), self.now)

    def _send_diff(self, sender: int, receiver: int, message: Message, runs: Runs) -> None:
        self.diffs[id(message)] = message, runs
        self.put(sender, receiver, message)

    def take(self, ends: tuple[int, int], message: Message) -> None:
        """A message without pages arrives."""
        if message.kind != Kind.DIFF:
            super().take(ends, message)
            return
        runs = self.diffs.pop(id(message))[1]
        self.said.append(f"n{ends[1]} has all of {message_text(message)}, {runs_text(runs)}")
        self.engines[ends[1]].diff_arrived(message, runs, runs, self.now)

    # -- commands -----------------------------------------------------------------------------------

    def do_cluster(self, words: list[str]) -> None:
        kept = [word for word in words if word.startswith("log=")]
        super().do_cluster([word for word in words if word not in kept])
        for engine in self.engines:
            for word in kept:
                engine.fence.log = Log(int(word[4:]))

    def do_release(self, words: list[str]) -> None:
        self.engines[number_of(words[0], "n")].fence.release(number_of(words[1], "t"), self.now)

    def do_acquire(self, words: list[str]) -> None:
        engine, source = self.engines[number_of(words[0], "n")], self.engines[number_of(words[2], "n")]
        fence, other = engine.fence, source.fence
        fence.log.learn(other.log.since(fence.time, other.time))
        fence.acquire(number_of(words[1], "t"), other.time, self.now)

    def do_unchanged(self, words: list[str]) -> None:
        self.unchanged.add(number_of(words[0], "n"))

    def do_rehome(self, words: list[str]) -> None:
        page, count = range_of(words[1])
        self.engines[number_of(words[0], "n")].rehome(REGION, page, count, number_of(words[2], "w"), self.now)

    def do_log(self, words: list[str]) -> None:
        fence = self.engines[number_of(words[0], "n")].fence
        self.said.append(f"time {time_text(fence.time)}")
        for engine in self.engines:
            known = fence.log.known(engine.node)
            for interval in fence.log.since((), (0,) * engine.node + (known,)):
                pages = runs_text(interval.pages[REGION])
                self.said.append(f"interval {interval.number} of n{interval.node}: {pages}")

    def do_pages(self, words: list[str]) -> None:
        first, count = range_of(words[0])
        for page in range(first, first + count):
            regions = [(engine, engine.release[REGION]) for engine in self.living()]
            states = " ".join(f"n{e.node} {State(e.state(REGION, page)).name}" for e, _ in regions)
            homes = [
                (e.node, region.table.copyset[page])
                for e, region in regions
                if region.placement.is_mine(page)
            ]
            shown = "no home"
            for home, copyset in homes:
                copies = ",".join(f"n{n}" for n in range(64) if copyset >> n & 1)
                shown = f"home n{home}, copies {copies or 'none'}"
            self.said.append(f"p{page}: {states}; {shown}")
