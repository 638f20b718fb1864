"""The simulated network: FIFO links with random delays, payloads that take time.

Owns the links.  Messages of one link arrive in order; those of different links overtake each other.
A message with pages arrives in two events, its header and its end; in between, other links' messages
may come.  Sending takes time too: until the last byte has left, the payload is what the frames hold,
so a frame that changes meanwhile tears the payload (its words become `TORN`), and whoever installs it
is caught by the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsm.coherence.messages import Message
from dsm.testing.simulation.truth import TORN, WORDS
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
        self.payload[page - self.message.page] = [TORN] * WORDS


class Link:
    """One direction between two nodes."""

    __slots__ = ("_arrival", "_free", "_world", "receiver", "sender")

    def __init__(self, world: World, sender: Node, receiver: Node) -> None:
        self._world = world
        self.sender = sender
        self.receiver = receiver
        #: When the sender's side is done with what was sent so far.
        self._free = 0
        #: When the last byte of what was sent so far arrives.
        self._arrival = 0

    def send(self, message: Any) -> None:
        """Send a message without pages."""
        world = self._world
        start = max(world.now, self._free)
        self._free = start + 100
        arrival = max(start + world.flight(), self._arrival + 1)
        self._arrival = arrival
        world.at(arrival, self.receiver.deliver, (self.sender.number, message))

    def send_pages(self, message: Message, region: NodeRegion) -> None:
        """Send a message with the frames of its pages; they are frozen until its last byte has left."""
        world = self._world
        transfer = Transfer(self.sender, self.receiver, message, region)
        region.freeze(transfer)
        start = max(world.now, self._free)
        sent = start + 200 + int(world.random.random() ** 4 * world.timing.page_high * min(message.count, 8))
        self._free = sent
        header = max(start + world.flight(), self._arrival + 1)
        end = max(sent, header) + world.flight()
        self._arrival = end
        world.at(sent, self.sender.sent, transfer)
        world.at(header, self.receiver.deliver_header, transfer)
        world.at(end, self.receiver.deliver_end, transfer)


class Network:
    """All links, made when they are first used."""

    #: What a mutant replaces.
    link_class = Link

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: list[Node] = []
        self._links: dict[tuple[int, int], Link] = {}

    def link(self, sender: int, receiver: int) -> Link:
        """Return the link from one node to another."""
        link = self._links.get((sender, receiver))
        if link is None:
            link = self._links[sender, receiver] = self.link_class(
                self.world, self.nodes[sender], self.nodes[receiver]
            )
        return link

    def send(self, sender: int, receiver: int, message: Any) -> None:
        """Send a message without pages."""
        self.link(sender, receiver).send(message)

    def send_pages(self, sender: int, receiver: int, message: Message, region: NodeRegion) -> None:
        """Send a message with pages."""
        self.link(sender, receiver).send_pages(message, region)
