"""The oracle of bounded staleness: what a read may return, and who may write.

Owns, for each word, every value it has held and when it was overwritten.  The rules:

* *bound*: a value that is read was overwritten at most `staleness` ago, or not at all;
* *token*: at most one node wants to write a page, or has it mapped for writing;
* *current at the writer*: whoever holds the token reads what was written last, and gets it with the token;
* *forwards*: a node never finds an older value in a word than it found there before;
* *whole*: a frame that is written, or that nobody may write yet, is not received into or discarded.

A process that was stopped as a whole may be in the middle of an instruction; what that reads when it goes on
is nobody's to forbid.  `excused` says when that was so.
"""

from __future__ import annotations

from dsm.testing.simulation.truth import NONE, READ, WORDS, WRITE, Truth
from dsm.testing.simulation.world import World

#: Overwritten never, so far.
_CURRENT = -1


class BoundedTruth(Truth):
    """The truth about one bounded region."""

    #: Set by the cluster, before anything happens.
    world: World
    staleness: int

    def __init__(self, region: int, pages: int, fill: int) -> None:
        super().__init__(region, pages, fill)
        #: (page, word) -> value -> its place in the word's history, and when it was overwritten.
        self._history: dict[tuple[int, int], dict[int, tuple[int, int]]] = {
            (page, word): {fill: (0, _CURRENT)} for page in range(pages) for word in range(WORDS)
        }
        #: (node, page, word) -> place in the history of what was found there last.
        self._found: dict[tuple[int, int, int], int] = {}
        #: Who reads now was stopped with its whole process until just before.
        self.excused = False
        #: How often a read returned an old value; a simulation that never does tests little.
        self.old_reads = 0

    def stored(self, node: int, page: int, word: int, value: int) -> None:
        """A worker of `node` stored `value`."""
        if not (self.wanted_write[page] | self.mapped_write[page]) >> node & 1 and not self.gone >> node & 1:
            raise self._broken(page, f"node {node} writes without the token")
        history = self._history[page, word]
        old = self.pages[page][word]
        place, _ = history[old]
        history[old] = (place, self.world.now)
        history[value] = (place + 1, _CURRENT)
        super().stored(node, page, word, value)

    def read(self, node: int, page: int, word: int, value: int) -> None:
        """A worker of `node` read `value`."""
        if self.gone >> node & 1:
            return
        history = self._history[page, word]
        if value not in history:
            raise self._broken(page, f"a worker of node {node} reads {value}, which nobody wrote")
        place, overwritten = history[value]
        if place < self._found.get((node, page, word), 0):
            raise self._broken(page, f"a worker of node {node} reads {value}, after a newer value")
        self._found[node, page, word] = place
        if overwritten == _CURRENT:
            return
        self.old_reads += 1
        if self.wanted_write[page] >> node & 1:
            raise self._broken(page, f"node {node} has the token and reads {value} from word {word}")
        late = self.world.now - overwritten - self.staleness
        if late > 0 and not self.excused:
            raise self._broken(page, f"a worker of node {node} reads {value}, {late} ns too old")

    # -- access --------------------------------------------------------------------------------------

    def raised(self, node: int, page: int, level: int, frame: list[int]) -> None:
        """`node` raised its wanted level of `page`; only the token is looked at."""
        bit = 1 << node
        if level != WRITE or self.gone & bit:
            return
        if self.gone and page in self.lost:
            raise self._broken(page, f"node {node} raises a page that was lost")
        if frame != self.pages[page]:
            raise self._broken(page, f"node {node} gets the token with a frame that holds {frame}")
        if (self.wanted_write[page] | self.mapped_write[page]) & ~bit:
            raise self._broken(page, f"node {node} gets a second token")
        self.wanted_write[page] |= bit
        self.wanted_read[page] |= bit

    def mapped(self, node: int, page: int, before: int, after: int, frame: list[int]) -> None:
        """The highest level at which a worker of `node` has `page` mapped went from `before` to `after`."""
        bit = 1 << node
        if self.gone & bit:
            return
        if after == WRITE:
            if self.mapped_write[page] & ~bit:
                raise self._broken(page, f"node {node} maps for writing what another node may write")
            self.mapped_write[page] |= bit
        else:
            self.mapped_write[page] &= ~bit
        if after == NONE:
            self.mapped_read[page] &= ~bit
        elif after >= READ:
            self.mapped_read[page] |= bit

    def overwritten(self, node: int, page: int, why: str) -> None:
        """The manager of `node` changes the frame of `page`: nobody there may write it, or lose it."""
        if (self.mapped_write[page] | self.wanted_write[page]) >> node & 1:
            raise self._broken(page, f"node {node} {why} a frame that its workers may write")
        if why == "discards" and self.mapped_read[page] >> node & 1:
            raise self._broken(page, f"node {node} discards a frame that its workers may read")

    def written(self, node: int, page: int) -> None:
        """A worker of `node` wrote, though some node is gone."""
        others = (self.wanted_write[page] | self.mapped_write[page]) & ~(1 << node)
        if self.gone >> node & 1 and others:
            raise self._broken(page, f"node {node}, which was declared dead, writes what another one may")
