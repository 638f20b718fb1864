"""What the memory of a region really holds, and the rules that must hold at every instant.

Owns the true contents of each page (the last value written to each word, in simulation order) and,
for each page, the sets of nodes that may reach it.  The protocol for the sequential model is
linearizable for each access, so the rules are exact:

* *single writer, as wanted*: when the wanted table of one node says WRITE, those of all others say NONE;
* *single writer, as mapped*: when a worker of one node has the page mapped for writing, no worker of
  another node has it mapped at all (what is mapped lags behind what is wanted, so both are checked);
* *complete before visible*: whenever a page is raised, or mapped, its frame holds the truth;
* *frames at rest*: a frame that any worker of the node has mapped is not filled, received into or
  discarded;
* *latest value*: each read returns the truth.

A node that crashed, or was declared dead, is *gone*: what it reads, maps and wants is no concern of the
others any more.  What it writes still is, for it may only write what no survivor can reach.  Pages of
which at some time since then no survivor had a readable copy are *bare*: only they may be lost.
"""

from __future__ import annotations

from dsm.testing.simulation.world import Violation

NONE, READ, WRITE = 0, 1, 3

#: Words a simulated page has: two, so that a half received page differs from an old and a new one.
WORDS = 2
#: Contents of frames that hold nothing: never used, discarded, changed while they were sent.
UNFILLED, DISCARDED, TORN = -5, -7, -9


class Truth:
    """The truth about one region."""

    #: Words a page has.
    words = WORDS

    def __init__(self, region: int, pages: int, fill: int) -> None:
        self.region = region
        self.pages = [[fill] * self.words for _ in range(pages)]
        #: For each page, nodes (as bits) whose wanted level is at least READ, and WRITE.
        self.wanted_read = [0] * pages
        self.wanted_write = [0] * pages
        #: For each page, nodes (as bits) of which a worker has it mapped for reading, and writing.
        self.mapped_read = [0] * pages
        self.mapped_write = [0] * pages
        #: Nodes (as bits) that are gone.
        self.gone = 0
        self.bare: set[int] = set()
        #: Pages of which a living directory said that they are lost.
        self.lost: set[int] = set()

    def _broken(self, page: int, rule: str) -> Violation:
        return Violation(
            f"region {self.region} page {page}: {rule} "
            f"(nodes as bits: wanted read {self.wanted_read[page]:#x}, "
            f"write {self.wanted_write[page]:#x}; mapped read {self.mapped_read[page]:#x}, "
            f"write {self.mapped_write[page]:#x}; truth {self.pages[page]})"
        )

    def raised(self, node: int, page: int, level: int, frame: list[int]) -> None:
        """`node` raised its wanted level of `page`; `frame` is what its workers will see."""
        bit = 1 << node
        if self.gone:
            if self.gone & bit:
                return
            if page in self.lost:
                raise self._broken(page, f"node {node} raises a page that was lost")
        others = ~bit
        if frame != self.pages[page]:
            raise self._broken(page, f"node {node} raises a page whose frame holds {frame}")
        if level == WRITE:
            if (self.wanted_read[page] | self.mapped_read[page]) & others:
                raise self._broken(page, f"node {node} raises to WRITE while another node may reach the page")
            self.wanted_write[page] |= bit
        elif (self.wanted_write[page] | self.mapped_write[page]) & others:
            raise self._broken(page, f"node {node} raises to READ while another node may write the page")
        self.wanted_read[page] |= bit

    def lowered(self, node: int, page: int, level: int) -> None:
        """`node` lowered its wanted level of `page` to at most `level`."""
        bit = 1 << node
        if level < WRITE:
            self.wanted_write[page] &= ~bit
        if level < READ:
            self.wanted_read[page] &= ~bit
            if self.gone and not self.wanted_read[page]:
                self.bare.add(page)

    def mapped(self, node: int, page: int, before: int, after: int, frame: list[int]) -> None:
        """The highest level at which a worker of `node` has `page` mapped went from `before` to `after`."""
        bit = 1 << node
        if self.gone & bit:
            return
        if after == WRITE:
            if self.mapped_read[page] & ~bit:
                raise self._broken(page, f"node {node} maps for writing what another node has mapped")
            self.mapped_read[page] |= bit
            self.mapped_write[page] |= bit
        elif after == READ:
            if self.mapped_write[page] & ~bit:
                raise self._broken(page, f"node {node} maps for reading what another node may write")
            self.mapped_read[page] |= bit
            self.mapped_write[page] &= ~bit
        else:
            self.mapped_read[page] &= ~bit
            self.mapped_write[page] &= ~bit
        if after > before and frame != self.pages[page]:
            raise self._broken(page, f"node {node} maps a frame that holds {frame}")

    def overwritten(self, node: int, page: int, why: str) -> None:
        """The manager of `node` changes the frame of `page`: nobody there may see it."""
        if (self.mapped_read[page] | self.wanted_read[page]) >> node & 1:
            raise self._broken(page, f"node {node} {why} a frame that its workers may reach")

    def read(self, node: int, page: int, word: int, value: int) -> None:
        """A worker of `node` read `value`."""
        if value != self.pages[page][word] and not self.gone >> node & 1:
            raise self._broken(page, f"a worker of node {node} reads {value} from word {word}")

    def stored(self, node: int, page: int, word: int, value: int) -> None:
        """A worker of `node` stored `value`."""
        self.pages[page][word] = value
        if self.gone:
            self.written(node, page)

    def written(self, node: int, page: int) -> None:
        """A worker of `node` wrote, though some node is gone."""
        others = (self.wanted_read[page] | self.mapped_read[page]) & ~(1 << node)
        if self.gone >> node & 1 and others:
            raise self._broken(page, f"node {node}, which was declared dead, writes what others may read")

    def node_gone(self, node: int) -> None:
        """`node` crashed, or was declared dead."""
        self.gone |= 1 << node
        self.forget(node)
        self.bare.update(page for page, nodes in enumerate(self.wanted_read) if not nodes)

    def forget(self, node: int) -> None:
        """`node` dropped the region: what it maps from now on is no concern of the protocol."""
        keep = ~(1 << node)
        for masks in (self.wanted_read, self.wanted_write, self.mapped_read, self.mapped_write):
            masks[:] = [mask & keep for mask in masks]
