"""The simulated network: FIFO links with random delays, payloads that take time.

Owns the links.  Messages of one link arrive in order; those of different links overtake each other.
A message with pages arrives in two events, its header and its end; in between, other links' messages
may come.  A link that is cut keeps what arrives until it is mended, as TCP does; of what a crashed sender
left on it, a part still arrives (of a message with pages perhaps the header alone); what comes to a crashed
receiver vanishes.  Sending takes time too: until the last byte has left, the payload is what the frames hold,
so a frame that changes meanwhile tears the payload (its words become `TORN`), and whoever installs it
is caught by the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dsm.coherence.messages import Message
from dsm.testing.simulation.truth import TORN
from dsm.testing.simulation.world import World

if TYPE_CHECKING:
    from dsm.testing.simulation.frames import NodeRegion
    from dsm.testing.simulation.node import Node


class Transfer:
    """A message with pages on its way."""

    __slots__ = ("accepted", "message", "payload", "receiver", "region", "sender")

    def __init__(self, sender: Node, receiver: Node, message: Message, region: NodeRegion) -> None:
        self.sender = sender
        self.receiver = receiver
        self.message = message
        #: The sender's side: where the frames are.
        self.region = region
        first = message.page
        self.payload = [list(frame) for frame in region.frames[first : first + message.count]]
        #: The receiver puts the payload into its frames.
        self.accepted = False

    def tear(self, page: int) -> None:
        """The frame of `page` changed before the last byte left."""
        self.payload[page - self.message.page] = [TORN] * self.region.words

    def leave(self) -> None:
        """The last byte is in the kernel: the frames are free."""
        self.sender.sent(self)


class Link:
    """One direction between two nodes."""

    __slots__ = (
        "_arrival",
        "_flying",
        "_free",
        "_held",
        "_left",
        "_stuck",
        "_world",
        "cut",
        "receiver",
        "sender",
    )

    def __init__(self, world: World, sender: Node, receiver: Node) -> None:
        self._world = world
        self.sender = sender
        self.receiver = receiver
        #: When the sender's side is done with what was sent so far.
        self._free = 0
        #: When the last byte of what was sent so far arrives.
        self._arrival = 0
        #: Arrivals that are planned or held.
        self._flying = 0
        #: Arrivals that may still happen, once the sender has crashed.
        self._left: int | None = None
        self.cut = False
        #: What would have arrived while the link was cut.
        self._held: list[tuple[Callable[[Any], None], Any]] = []
        #: Transfers whose last byte cannot leave while the link is cut.
        self._stuck: list[Transfer] = []

    def send(self, message: Any) -> None:
        """Send a message without pages."""
        world = self._world
        start = max(world.now, self._free)
        self._free = start + 100
        arrival = max(start + world.flight(), self._arrival + 1)
        self._arrival = arrival
        self._flying += 1
        world.at(arrival, self._arrive, (self.receiver.deliver, (self.sender.number, message)))

    def send_transfer(self, transfer: Transfer) -> None:
        """Send a message with pages, or with bytes of them; frames are in use meanwhile."""
        world = self._world
        message = transfer.message
        start = max(world.now, self._free)
        sent = start + 200 + int(world.random.random() ** 4 * world.timing.page_high * min(message.count, 8))
        self._free = sent
        header = max(start + world.flight(), self._arrival + 1)
        end = max(sent, header) + world.flight()
        self._arrival = end
        self._flying += 2
        world.at(sent, self._leave, transfer)
        world.at(header, self._arrive, (self.receiver.deliver_header, transfer))
        world.at(end, self._arrive, (self.receiver.deliver_end, transfer))

    def _arrive(self, what: tuple[Callable[[Any], None], Any]) -> None:
        if self.cut:
            self._held.append(what)
            return
        self._flying -= 1
        if self._left is not None:
            if not self._left:
                return
            self._left -= 1
        if not self.receiver.dead:
            what[0](what[1])

    def _leave(self, transfer: Transfer) -> None:
        if self.sender.dead:
            return
        if self.cut and self._world.random.random() < 0.5:
            # What the sender's kernel has not taken stays in the frames.
            self._stuck.append(transfer)
        else:
            transfer.leave()

    def mend(self, _: Any = None) -> None:
        """The link works again: what was held arrives, in order, before what comes later."""
        self.cut = False
        held, self._held = self._held, []
        for what in held:
            self._arrive(what)
        self.unstick()

    def unstick(self) -> None:
        """What could not leave has left, or never will."""
        stuck, self._stuck = self._stuck, []
        for transfer in stuck:
            if not self.sender.dead:
                transfer.leave()

    def sender_crashed(self) -> None:
        """Of what is on its way, the first part arrives; how much is drawn."""
        self._left = self._world.random.randint(0, self._flying)


class Network:
    """All links, made when they are first used."""

    #: What a mutant replaces.
    link_class = Link

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: list[Node] = []
        self._links: dict[tuple[int, int], Link] = {}
        #: Called with the number of a node that crashed.
        self.crash_watchers: list[Callable[[int], None]] = []

    def link(self, sender: int, receiver: int) -> Link:
        """Return the link from one node to another."""
        link = self._links.get((sender, receiver))
        if link is None:
            link = self._links[sender, receiver] = self.link_class(
                self.world, self.nodes[sender], self.nodes[receiver]
            )
        return link

    def reaches(self, number: int) -> bool:
        """Whether there is such a node (a region may name one that has not joined)."""
        return number < len(self.nodes)

    def crashed(self, number: int) -> None:
        """A node is gone: the end of what it sent is lost."""
        for (sender, _), link in self._links.items():
            if sender == number:
                link.sender_crashed()
        for watcher in self.crash_watchers:
            watcher(number)

    def closed(self, sender: int, receiver: int) -> None:
        """The sender gave this link up: frames that could not leave are free."""
        link = self._links.get((sender, receiver))
        if link is not None:
            link.unstick()

    def send(self, sender: int, receiver: int, message: Any) -> None:
        """Send a message without pages."""
        self.link(sender, receiver).send(message)

    def send_pages(self, sender: int, receiver: int, message: Message, region: NodeRegion) -> None:
        """Send a message with pages."""
        link = self.link(sender, receiver)
        link.send_transfer(region.send(link.sender, link.receiver, message))
