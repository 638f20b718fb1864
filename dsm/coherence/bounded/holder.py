"""Holder side of bounded staleness: the owner serves readers from the frame that it writes.

Owns the one difference to the sequential holder: a copy is sent live, without a fault, a revocation or a
message for the owner's workers; neither a hold nor a pin keeps it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.coherence.holder import Holder
from dsm.coherence.messages import Flag, Kind, Message, SendPages
from dsm.coherence.states import State

if TYPE_CHECKING:
    from dsm.coherence.bounded.region import BoundedRegion

_WRITE = int(Flag.WRITE)
_FETCH, _DATA = int(Kind.FETCH), int(Kind.DATA)
_OWNED = frozenset({int(State.EXCLUSIVE)})


class BoundedHolder(Holder):
    """What other nodes want of this one, in one bounded region."""

    __slots__ = ()

    region: BoundedRegion
    #: Copies that are read do not survive their owner: they are old.
    surviving = _OWNED

    def revoke(self, message: Message) -> None:
        """A FETCH arrived."""
        if message.flags & _WRITE:
            super().revoke(message)
            return
        region = self.region
        page, count = message.page, message.count
        owned = region.table.present_end(page, page + count, True)
        if owned < page + count:
            text = f"node {message.node} is to get a copy of page {owned} from here"
            raise region.broken(owned, text)
        data = Message(
            _DATA, region.number, page, count, message.request, message.node, message.flags, message.value
        )
        if message.node == region.node:
            raise region.broken(page, f"this node asks itself for a copy of page {page}")
        region.effects.append(SendPages(message.node, data, live=True))

    def resume(self) -> None:
        """Time has passed, a pin was released or a demand ended: start what may start now."""
        super().resume()
        if self.region.requester.deadline is not None:
            self.region.engine.held_back.add(self.region.number)
