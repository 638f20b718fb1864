"""The model of a region at a node: its frames, its wanted table, and what of it is being sent.

Owns the contents of the frames.  A frame that changes while it is sent tears what arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.testing.simulation.network import Transfer
from dsm.testing.simulation.truth import DISCARDED, UNFILLED, Truth

if TYPE_CHECKING:
    from dsm.coherence.messages import Message
    from dsm.testing.simulation.node import Node
    from dsm.testing.simulation.worker import WorkerRegion


class NodeRegion:
    """One region at one node."""

    __slots__ = (
        "doomed",
        "dropped",
        "fill",
        "frames",
        "number",
        "pages",
        "sending",
        "truth",
        "wanted",
        "words",
        "workers",
    )

    def __init__(self, number: int, truth: Truth, fill: int) -> None:
        self.number = number
        self.truth = truth
        self.fill = fill
        self.pages = len(truth.pages)
        self.words = truth.words
        self.frames = [[UNFILLED] * self.words for _ in range(self.pages)]
        self.wanted = bytearray(self.pages)
        self.workers: list[WorkerRegion] = []
        #: Transfers whose last byte has not left, by page.
        self.sending: dict[int, list[Transfer]] = {}
        #: Pages to discard once their last byte has left.
        self.doomed: set[int] = set()
        self.dropped = False

    def send(self, sender: Node, receiver: Node, message: Message) -> Transfer:
        """Begin to send these frames."""
        transfer = Transfer(sender, receiver, message, self)
        for page in range(message.page, message.page + message.count):
            self.sending.setdefault(page, []).append(transfer)
        return transfer

    def changed(self, page: int) -> None:
        """A frame changed while it was sent: what arrives is torn."""
        for transfer in self.sending.get(page, ()):
            transfer.tear(page)

    def destroy(self, page: int) -> None:
        """Return the memory of a frame."""
        self.changed(page)
        self.frames[page][:] = [DISCARDED] * self.words
