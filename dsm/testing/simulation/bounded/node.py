"""The model of a node with bounded regions: leases, and frames that are in use while they are copied.

Owns the leases that the manager publishes.  A copy is sent as it is at one moment, and what arrives is stored
when it is complete, whoever reads the frame: the rules of frames at rest hold for the token alone.
"""

from __future__ import annotations

from dsm.coherence.engine import Engine
from dsm.coherence.messages import Lease, SendPages
from dsm.testing.simulation.frames import NodeRegion
from dsm.testing.simulation.network import Network, Transfer
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.world import World
from dsm.types import Region


class LeasedRegion(NodeRegion):
    """One bounded region at one node."""

    __slots__ = ("leases", "staleness")

    def __init__(self, region: Region, truth: Truth, fill: int) -> None:
        super().__init__(region.region, truth, fill)
        #: Nanoseconds until which each page may be read, where READ is wanted.
        self.leases = [0] * self.pages
        self.staleness = region.options.max_staleness_ns


class LiveTransfer(Transfer):
    """A copy on its way: the frames are not in use."""

    __slots__ = ()

    def leave(self) -> None:
        """The last byte is in the kernel; the copy ends."""


class BoundedNode(Node):
    """One node."""

    def __init__(self, world: World, network: Network, number: int, engine: Engine) -> None:
        super().__init__(world, network, number, engine)
        self._actions[Lease] = self.do_lease

    def make_region(self, region: Region, truth: Truth, fill: int) -> NodeRegion:
        """Return the frames of a region."""
        return LeasedRegion(region, truth, fill)

    def do_lease(self, effect: Lease) -> None:
        """Publish until when pages may be read."""
        home = self.live(effect.region, effect)
        assert isinstance(home, LeasedRegion)
        for page in range(effect.page, effect.page + effect.count):
            home.leases[page] = effect.end

    def do_send_pages(self, effect: SendPages) -> None:
        """Send frames, or a copy of them."""
        if not effect.live:
            super().do_send_pages(effect)
            return
        home = self.live(effect.message.region, effect)
        if self.losses.gone:
            self.losses.sends(self.number, effect)
        if effect.node not in self.closed and self.network.reaches(effect.node):
            link = self.network.link(self.number, effect.node)
            link.send_transfer(LiveTransfer(link.sender, link.receiver, effect.message, home))

    def header(self, transfer: Transfer) -> None:
        """Receive into memory of its own: frames may be in use."""
        if transfer.sender.number in self.closed:
            return
        message = transfer.message
        self.world.note(What.HEADER, self.number, transfer.sender.number, 0, 0, message)
