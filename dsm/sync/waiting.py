"""Who waits at an object: what is known of such a thread, and how it leaves a queue early."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from dsm.sync.reply import Gone, Owner, Party


class Waiter(msgspec.Struct, frozen=True, gc=False):
    """A thread that waits."""

    node: int
    ticket: int
    owner: Owner
    since: int
    #: Number of the condition whose notification it got; 0: it came of its own.
    condition: int = 0
    #: Of that condition: how many had begun to wait when it was notified (`dsm.sync.condition`).
    arrivals: int = 0

    def party(self) -> Party:
        """Return who it is."""
        return Party(self.node, *self.owner, self.since)


W = TypeVar("W", bound=Waiter)


def without_call(waiting: Iterable[W], node: int, ticket: int) -> list[W]:
    """Return those who wait but the one whose call that is."""
    return [each for each in waiting if (each.node, each.ticket) != (node, ticket)]


def without_gone(waiting: Iterable[W], gone: Gone) -> list[W]:
    """Return those who wait and are not gone."""
    return [each for each in waiting if not gone.has(each.node, each.owner[0])]


def parties(waiting: Iterable[Waiter]) -> tuple[Party, ...]:
    """Return who they are."""
    return tuple(each.party() for each in waiting)
