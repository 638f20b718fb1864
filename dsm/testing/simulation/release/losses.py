"""What the loss of nodes does to pages of release consistency, and what it may do.

Owns the judgement: a page may be lost when a node is gone that was its home, or that some survivor took
for its home, or that was its first one.  Such a page is *tainted*: what is left of it may be old.  Of every
other page survivors see all that was released.
"""

from __future__ import annotations

from collections.abc import Callable

from dsm.coherence.messages import Flag, Forward, Kind, Send, SendPages
from dsm.testing.simulation.losses import Losses
from dsm.testing.simulation.release.diffs import pages_of
from dsm.testing.simulation.release.truth import ReleaseTruth

_GIVING = (Kind.DATA, Kind.GRANT)


class ReleaseLosses(Losses):
    """Nodes that are gone, and the pages whose homes they were."""

    def __init__(self) -> None:
        super().__init__()
        #: Called with the number of a node that is gone.
        self.watchers: list[Callable[[int], None]] = []
        #: region, page -> nodes (as bits) that somebody ever took for its home when a node was lost.
        self._homes: dict[tuple[int, int], int] = {}
        #: Who passed a diff on, and its number -> to whom, and what it is about.
        self._passed_on: dict[tuple[int, int], Forward] = {}

    def node_gone(self, node: int) -> None:
        """A node crashed, or was declared dead: note whose home it was."""
        if self.is_gone(node):
            return
        super().node_gone(node)
        for watcher in self.watchers:
            watcher(node)
        for engine in self.engines.values():
            for number, region in engine.fence.regions.items():
                for page in range(region.table.pages):
                    key = number, page
                    taken = 1 << region.placement.directory(page)
                    self._homes[key] = self._homes.get(key, 0) | taken
        for number, region in self.engines[node].fence.regions.items():
            truth = self.truths[number]
            assert isinstance(truth, ReleaseTruth)
            mine = [page for page in range(region.table.pages) if self._had_home(number, page, node)]
            truth.tainted.update(mine)
            self.tally["homes lost"] += len(mine)
        self._dies_with(node)

    def passes_on(self, sender: int, effect: Forward) -> None:
        """A node passes a diff on to where it takes the home to be."""
        self._passed_on[sender, effect.message.request] = effect

    def _dies_with(self, node: int) -> None:
        """Diffs that were passed on to a node, and are not stored as far as is known, die with it."""
        for (sender, number), effect in self._passed_on.items():
            region = self.engines[sender].fence.regions.get(effect.message.region)
            if effect.node == node and region is not None and number in region.home._forwarded:
                truth = self.truths[region.number]
                assert isinstance(truth, ReleaseTruth)
                truth.tainted.update(pages_of(effect.runs))
                self.tally["diffs lost on their way"] += 1

    def sends(self, sender: int, effect: Send | SendPages) -> None:
        """A node sends something while some node is gone."""
        super().sends(sender, effect)
        message = effect.message
        truth = self.truths[message.region]
        if message.flags & Flag.HOME and message.kind in _GIVING and self.is_gone(effect.node):
            assert isinstance(truth, ReleaseTruth)
            for page in range(message.page, message.page + message.count):
                truth.tainted.add(page)
                self.tally["homes given to the dead"] += 1

    def _had_home(self, number: int, page: int, node: int) -> bool:
        """Whether a page had its home on that node, or on its way there; or somebody took it for its home.

        Then what is under way to the home by way of that node dies with it.
        """
        homeless = True
        for name, engine in self.engines.items():
            region = engine.fence.regions.get(number)
            if region is None or (name != node and self.is_gone(name)):
                continue
            if region.placement.directory(page) == node:
                return True
            homeless = homeless and not region.placement.is_mine(page)
        return homeless

    def may_be_lost(self, node: int, number: int, page: int) -> bool:
        """Whether the loss of a page is justified."""
        truth = self.truths[number]
        if not isinstance(truth, ReleaseTruth):
            return super().may_be_lost(node, number, page)
        return page in truth.tainted or bool(self._homes.get((number, page), 0) & self.gone)
