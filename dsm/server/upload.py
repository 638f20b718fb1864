"""The payload of one SET on its way in.

Owns where its bytes go: into a lease's memory, into memory of its own until the cluster takes them, or, after
an error, nowhere.  It knows neither requests nor answers.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from dsm.errors import DSMError, LeaseExpiredError
from dsm.limits import LEASE_TURN_BYTES
from dsm.memory.token import show_id

if TYPE_CHECKING:
    from dsm.server.book import Holding
    from dsm.worker.lease import Lease


class Upload:
    """A SET whose bytes are coming.

    Parameters
    ----------
    number, count
        Of the request.
    left
        Bytes that are still to come.
    place
        Where all of them go.
    holding
        The server's lease that has that place.
    foreign
        Else the lease of the cluster that they are for, and their offset in it.
    failure
        Why the bytes are dropped, and what is to be answered.
    """

    __slots__ = ("_place", "count", "failure", "foreign", "holding", "left", "number")

    def __init__(
        self,
        number: int,
        count: int,
        left: int,
        place: memoryview | None = None,
        *,
        holding: Holding | None = None,
        foreign: tuple[Lease, int] | None = None,
        failure: DSMError | None = None,
    ) -> None:
        self.number = number
        self.count = count
        self.left = left
        self._place = place
        self.holding = holding
        self.foreign = foreign
        self.failure = failure

    def put(self, data: memoryview) -> int:
        """Take what is here already; return the bytes taken."""
        here = min(self.left, len(data))
        if self._place is not None:
            start = len(self._place) - self.left
            self._place[start : start + here] = data[:here]
        self.left -= here
        return here

    def receive(self, sock: socket.socket, scratch: memoryview) -> int:
        """Take from the socket what may be taken in one turn; return the bytes, 0 at the socket's end."""
        room = min(self.left, LEASE_TURN_BYTES)
        if self._place is None:
            got = sock.recv_into(scratch, min(room, len(scratch)))
        else:
            start = len(self._place) - self.left
            got = sock.recv_into(self._place[start : start + room])
        self.left -= got
        return got

    @property
    def gathered(self) -> memoryview:
        """All bytes, for the cluster."""
        assert self._place is not None
        return self._place

    def drop(self, holding: Holding) -> None:
        """The lease has ended: store nothing more."""
        self._place = self.holding = None
        self.failure = ran_out(holding)


def ran_out(holding: Holding) -> LeaseExpiredError:
    """Return what is answered to a SET whose lease has ended meanwhile."""
    return LeaseExpiredError(
        f"lease {show_id(holding.id)} ended before the last byte had come; its memory is gone: lease anew"
    )
