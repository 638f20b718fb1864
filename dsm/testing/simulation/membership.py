"""The model of the cluster's membership: the coordinator's word, and how it spreads.

Owns what is declared and when.  Node 0 is the coordinator; it never dies.  It notices a crash, or a link
that has been silent for too long, some time later; then it declares one node dead, and every survivor
hears of it on its own link from node 0, at its own time.  A node that was declared dead though it lives
(a *zombie*) goes on until it learns it, and ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dsm.testing.simulation.losses import Losses
from dsm.testing.simulation.network import Network
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.world import World

if TYPE_CHECKING:
    from dsm.testing.simulation.node import Node


class Members(NamedTuple):
    """The coordinator's word on its way: this node is dead."""

    lost: int


class Membership:
    """What the coordinator knows and says."""

    def __init__(self, world: World, network: Network, losses: Losses) -> None:
        self.world = world
        self.network = network
        self.losses = losses
        #: Nodes that were declared dead, in order.
        self.declared: list[int] = []
        #: Nanoseconds within which a crash is noticed, and of silence after which a link is given up.
        self.notice = 1_000_000
        self.silence = 1_000_000
        network.crash_watchers.append(self.crashed)

    @property
    def nodes(self) -> list[Node]:
        """All nodes there ever were."""
        return self.network.nodes

    def survivors(self) -> list[Node]:
        """Nodes that live and were not declared dead."""
        return [node for node in self.nodes if not node.dead and node.number not in self.declared]

    def crashed(self, number: int) -> None:
        """A node is gone; peers see their connections to it close, the coordinator notices later."""
        world = self.world
        if number in self.declared:
            return
        world.after(world.random.randrange(self.notice), self._suspect, (number, -1))
        world.after(world.random.randrange(self.notice), self._report, number)

    def cut(self, a: int, b: int, spans: tuple[int, int]) -> None:
        """Cut the links between two nodes, each direction for its span."""
        world = self.world
        links = (self.network.link(a, b), self.network.link(b, a))
        if links[0].cut or links[1].cut:
            return
        what = " and ".join(f"{span / 1000:.0f} µs" for span in spans)
        world.note(What.CUT, -1, a, b, min(spans) >= self.silence, what)
        for link, span in zip(links, spans, strict=True):
            link.cut = True
            world.after(span, link.mend)
        if min(spans) >= self.silence:
            world.after(self.silence // 2, self._suspect, (a, b))
            world.after(self.silence, self._silent, (a, b))

    def _suspect(self, who: tuple[int, int]) -> None:
        a, b = who
        for node in self.survivors():
            if b == -1:
                node.suspect(a)
            elif node.number in who:
                node.suspect(a + b - node.number)

    def _silent(self, who: tuple[int, int]) -> None:
        """Two nodes have not heard of each other for too long: one of them must go."""
        living = {node.number for node in self.survivors()}
        if living.issuperset(who):
            self._report(self.world.random.choice([number for number in who if number]))

    def _report(self, number: int) -> None:
        coordinator = self.nodes[0]
        coordinator.post((self._declare, number))

    def _declare(self, number: int) -> None:
        """Node 0 says that a node is dead."""
        if number in self.declared:
            return
        world = self.world
        world.note(What.DECLARED, 0, number)
        zombie = not self.nodes[number].dead
        self.losses.tally["zombies" if zombie else "crashes declared"] += 1
        self.declared.append(number)
        self.losses.node_gone(number)
        for node in self.survivors():
            if node.number:
                self.network.send(0, node.number, Members(number))
        self.nodes[0].lost(number)
        if zombie:
            late = self.network.link(0, number).cut or world.random.random() < 0.3
            delay = world.random.randrange(4 * self.silence) if late else world.flight() + world.pause()
            world.after(delay, self.nodes[number].crash)
