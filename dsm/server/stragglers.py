"""Clients who hold up others with a transfer of what those wait for.

That is memory of an ended lease, or of the share for bytes of the cluster's leases.  Owns who is watched and
how far each was a second ago.  Who does not move on is closed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dsm.limits import LEASE_LINGER_S

if TYPE_CHECKING:
    from dsm.server.channel import Channel
    from dsm.server.share import Share

#: Bytes that must move between two looks.
_LEAST_BYTES = 256 * 1024


class Stragglers:
    """Watches clients whom others wait for.

    Attributes
    ----------
    due
        When they are looked at next; None: nobody is watched.
    """

    def __init__(self) -> None:
        #: How far each was at the last look.
        self._moved: dict[Channel, int] = {}
        self.due: float | None = None

    def watch(self, clients: Iterable[Channel]) -> None:
        """Others wait for what these have."""
        for client in clients:
            if self.due is None:
                self.due = time.monotonic() + LEASE_LINGER_S
            # A whole second is its own, whenever the next look is.
            self._moved.setdefault(client, client.moved - _LEAST_BYTES)

    def forget(self, client: Channel) -> None:
        """It is being closed."""
        self._moved.pop(client, None)

    def look(self, now: float, foreign: Share[Channel]) -> None:
        """Close who has not moved on since the last look, and stop watching whom nobody waits for.

        Those who have a part of `foreign`, the memory for bytes of the cluster's leases, hold up others as
        long as somebody waits for some.
        """
        for client, moved in list(self._moved.items()):
            if not (client.sends_ended or (foreign.waiting and client in foreign.taken)):
                self.forget(client)
            elif client.waits:  # not for its client
                self._moved[client] = client.moved - _LEAST_BYTES
            elif client.moved - moved >= _LEAST_BYTES:
                self._moved[client] = client.moved
            else:
                client.close("it does not move on with a transfer that others wait for")
        self.due = now + LEASE_LINGER_S
        if foreign.waiting:
            self.watch(foreign.taken)
        if not self._moved:
            self.due = None
