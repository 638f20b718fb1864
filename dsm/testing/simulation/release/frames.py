"""The model of a region at a node under release consistency: frames of bytes, and their twins.

A frame may be written while it is sent: what arrives has some of the bytes as they were when sending began,
and the others as they were when the last one left.  A frame may be written while bytes of a diff are stored
in it, and while it is copied for a diff, byte by byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.testing.simulation.frames import NodeRegion
from dsm.testing.simulation.network import Transfer

if TYPE_CHECKING:
    from dsm.coherence.messages import Message
    from dsm.testing.simulation.node import Node

#: page, offset, byte.
Byte = tuple[int, int, int]


class LiveTransfer(Transfer):
    """Frames that may change while they are sent."""

    __slots__ = ()

    def tear(self, page: int) -> None:
        """What has left stays as it was, what has not is sent as it is."""

    def leave(self) -> None:
        """The last byte is in the kernel."""
        first, half = self.message.page, self.region.words // 2
        for index, words in enumerate(self.payload):
            # Which half goes last depends on the page, so that words in both are torn now and then.
            late = slice(half, None) if (first + index + self.message.request) % 2 else slice(0, half)
            words[late] = self.region.frames[first + index][late]
        super().leave()


class LiveRegion(NodeRegion):
    """One region of release consistency at one node."""

    __slots__ = ("twins",)

    def __init__(self, number: int, truth: object, fill: int) -> None:
        super().__init__(number, truth, fill)  # type: ignore[arg-type]
        #: page -> its frame as it was before any worker could write it.
        self.twins: dict[int, list[int]] = {}

    def send(self, sender: Node, receiver: Node, message: Message) -> Transfer:
        """Begin to send these frames."""
        transfer = LiveTransfer(sender, receiver, message, self)
        for page in range(message.page, message.page + message.count):
            self.sending.setdefault(page, []).append(transfer)
        return transfer
