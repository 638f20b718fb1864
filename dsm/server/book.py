"""The leases of a server and the memory they have: what is leased, what is being cleaned, what is free.

Pure: the time, ids and keys are arguments, memory is addresses.  What it decides about memory is an order to
its owner: whatever `next_to_clean` returns is zeroed and reported by `cleaned`, and only then free again.
An ended lease whose memory is still being sent keeps it until the last transfer has ended (`let_go`).
"""

from __future__ import annotations

from collections import deque

from dsm.errors import FullError, NotPermittedError, TooLargeError, UnknownLeaseError
from dsm.limits import MAX_SERVER_LEASES, OS_PAGE_BYTES
from dsm.memory.leases import LeaseRecord, LeaseTable
from dsm.memory.pool import Pool
from dsm.memory.token import show_id
from dsm.units import show_bytes
from dsm.wire.leases import ID_BYTES, Row


class Holding:
    """A lease's memory.

    Attributes
    ----------
    address, nbytes
        Where it is, as asked for.
    deadline_ms
        Until when the lease is alive; 0 when it has ended.
    low, high
        Offsets between which something may have been written; `high` 0: nothing.
    transfers
        Answers that are being sent from it.
    """

    __slots__ = ("address", "deadline_ms", "high", "id", "low", "moving", "nbytes", "tokens", "transfers")

    def __init__(self, identity: bytes, address: int, nbytes: int) -> None:
        self.id = identity
        self.address = address
        self.nbytes = nbytes
        self.deadline_ms = 0
        self.low = nbytes
        self.high = 0
        self.transfers = 0
        #: Another authority is copying it: it must not be touched until that has ended.
        self.moving = False
        #: What has been shown for it lately: keys of `Book.readable` and `Book.writable`.
        self.tokens: list[bytes] = []

    @property
    def alive(self) -> bool:
        """Whether the lease has not been taken out."""
        return self.deadline_ms > 0

    def written(self, offset: int, nbytes: int) -> None:
        """Note that bytes are being written."""
        self.low = min(self.low, offset)
        self.high = max(self.high, offset + nbytes)


def unknown_lease(identity: bytes) -> UnknownLeaseError:
    """Return the error for an id and key: it does not tell which of them is wrong."""
    return UnknownLeaseError(
        f"no lease has the id {show_id(identity)} and this key here, nor had it lately; check the token, or "
        "lease anew"
    )


class CleaningError(Exception):
    """There is room for a lease when something is cleaned: ask again then."""


class MovingError(Exception):
    """A lease is being given to another authority: ask again when that has ended."""


class Book:
    """The leases of one server.

    Parameters
    ----------
    address, nbytes
        Its memory: all zeros.
    """

    def __init__(self, address: int, nbytes: int) -> None:
        self.table = LeaseTable()
        self.pool = Pool(nbytes)
        self.pool.add_extent(address, nbytes)
        self.size = nbytes
        #: The longest lease that fits when nothing else is leased.
        self.largest = self.pool.figures().largest_free
        #: Live leases by the id and key that were shown; what is there was judged by the table.
        self.readable: dict[bytes, Holding] = {}
        self.writable: dict[bytes, Holding] = {}
        #: Ended leases whose memory is to be zeroed, and those whose memory is being sent.
        self._dirty: deque[Holding] = deque()
        self._lingering: set[Holding] = set()
        self.counts = dict.fromkeys(("opened", "released", "expired", "moved"), 0)
        #: Bytes of live leases, as they were asked for.
        self.leased_bytes = 0
        #: Bytes of ended ones that are not free yet.
        self.ended_bytes = 0

    # -- leases ------------------------------------------------------------------------------------------

    def lease(
        self, now_ms: int, nbytes: int, duration_ms: int, identity: bytes, write_key: bytes, read_key: bytes
    ) -> Holding | None:
        """Begin a lease; None: there will be room when something is cleaned.

        Raises
        ------
        TooLargeError, FullError, UsageError
            It cannot ever fit, it does not fit now, or an argument is wrong.
        """
        if nbytes > self.largest:
            raise TooLargeError(
                f"a lease of {nbytes} bytes was asked for, and this server can lease at most "
                f"{self.largest} at "
                f"once; ask for less, or start it with a larger --size than {show_bytes(self.size)}"
            )
        if len(self.table) >= MAX_SERVER_LEASES:
            raise FullError(
                f"this server has {len(self.table)} leases, and takes no more; wait for leases to end, "
                "or put "
                "what is small into one lease"
            )
        address = self.pool.allocate(nbytes, OS_PAGE_BYTES if nbytes >= OS_PAGE_BYTES else 16)
        if address is None:
            if self._dirty:
                return None
            raise self._full(nbytes)
        holding = Holding(identity, address, nbytes)
        try:
            record = self.table.add(identity, write_key, read_key, nbytes, holding, now_ms, duration_ms)
        except BaseException:
            self.pool.free(address)
            raise
        holding.deadline_ms = record.deadline_ms
        self.leased_bytes += nbytes
        self.counts["opened"] += 1
        self._remember(identity + write_key, holding, True)
        return holding

    def find(self, token: bytes, now_ms: int, write: bool = False) -> Holding:
        """Return the lease that a token stands for.

        Raises
        ------
        UnknownLeaseError
            No lease has that id and key: whether it is the id or the key is not told.
        LeaseExpiredError
            It has ended.
        NotPermittedError
            The key is for reading only.
        MovingError
            It is being given away.
        """
        identity, key = token[:ID_BYTES], token[ID_BYTES:]
        try:
            record = self.table.find(identity, key, now_ms)
        except (NotPermittedError, UnknownLeaseError):
            raise unknown_lease(identity) from None
        holding: Holding = record.place
        if holding.moving:
            raise MovingError
        if write:
            self.table.find(identity, key, now_ms, write=True)
        self._remember(token, holding, write or self.table.may_write(record, key))
        return holding

    def has(self, identity: bytes) -> bool:
        """Whether the id is one of this server's leases, or was lately."""
        return identity in self.table or self.table.has_ended(identity)

    def renew(self, token: bytes, now_ms: int, duration_ms: int) -> Holding:
        """Let a lease end `duration_ms` from now; raises as `find` for writing."""
        holding = self.find(token, now_ms, write=True)
        record = self.table.renew(token[:ID_BYTES], token[ID_BYTES:], now_ms, duration_ms)
        holding.deadline_ms = record.deadline_ms
        return holding

    def release(self, token: bytes, now_ms: int) -> Holding:
        """End a lease; raises as `find` for writing."""
        holding = self.find(token, now_ms, write=True)
        self.table.end(token[:ID_BYTES], token[ID_BYTES:], now_ms)
        self.counts["released"] += 1
        self._end(holding)
        return holding

    def due(self, now_ms: int) -> list[Holding]:
        """End the leases that have run out, and return them."""
        ended: list[Holding] = [record.place for record in self.table.due(now_ms)]
        for holding in ended:
            self._end(holding)
        self.counts["expired"] += len(ended)
        return ended

    # -- leases that another authority is to have --------------------------------------------------------

    def begin_move(self, token: bytes, now_ms: int) -> LeaseRecord:
        """Let a lease and its bytes stand still, so that they can be copied; raises as `find`."""
        holding = self.find(token, now_ms)
        holding.moving = True
        self._forget(holding)
        self.hold(holding)
        return self.table.find(holding.id, token[ID_BYTES:], now_ms)

    def end_move(self, holding: Holding, moved: bool) -> None:
        """It has been copied, and is the other's now; or it stays."""
        holding.moving = False
        if moved and holding.alive:
            self.table.move(holding.id)
            self.counts["moved"] += 1
            self._end(holding)
        elif moved:  # it ran out here meanwhile; there it may have been renewed
            self.table.forget(holding.id)
        self.let_go(holding)

    def _forget(self, holding: Holding) -> None:
        for token in holding.tokens:
            self.readable.pop(token, None)
            self.writable.pop(token, None)
        holding.tokens = []

    def _remember(self, token: bytes, holding: Holding, write: bool) -> None:
        if token not in self.readable or (write and token not in self.writable):
            holding.tokens.append(token)
        self.readable[token] = holding
        if write:
            self.writable[token] = holding

    def _end(self, holding: Holding) -> None:
        self._forget(holding)
        holding.deadline_ms = 0
        self.leased_bytes -= holding.nbytes
        self.ended_bytes += holding.nbytes
        if holding.transfers:
            self._lingering.add(holding)
        else:
            self._dirty.append(holding)

    def _full(self, nbytes: int) -> FullError:
        figures = self.pool.figures()
        return FullError(
            f"a lease of {nbytes} bytes was asked for; of {self.size} bytes {figures.used} are used, and the "
            f"largest free piece has {figures.largest_free}; wait for leases to end, or ask for less"
        )

    # -- memory ------------------------------------------------------------------------------------------

    def hold(self, holding: Holding) -> None:
        """An answer is being sent from a lease's memory."""
        holding.transfers += 1

    def let_go(self, holding: Holding) -> None:
        """It is sent, or its connection was closed."""
        holding.transfers -= 1
        if not holding.transfers and holding in self._lingering:
            self._lingering.discard(holding)
            self._dirty.append(holding)

    @property
    def cleaning(self) -> bool:
        """Whether memory waits to be zeroed."""
        return bool(self._dirty)

    def next_to_clean(self) -> Holding | None:
        """Return an ended lease whose memory, from `low` to `high`, must be zeroed before `cleaned`."""
        return self._dirty[0] if self._dirty else None

    def cleaned(self, holding: Holding) -> None:
        """Its memory is zeros: it can be leased again."""
        self._dirty.remove(holding)
        self.ended_bytes -= holding.nbytes
        self.pool.free(holding.address)

    # -- questions ---------------------------------------------------------------------------------------

    def row(self, record: LeaseRecord, now_ms: int, writable: bool = False) -> Row:
        """Return a lease as lists show it."""
        return Row(
            record.id, record.nbytes, record.remaining_ms(now_ms), now_ms - record.created_ms, writable
        )

    def figures(self) -> dict[str, int]:
        """Return what is true of the memory now, in bytes, and what was counted."""
        pool = self.pool.figures()
        return {
            "size": self.size,
            "used": pool.used,
            "free": pool.free,
            "largest_free": pool.largest_free,
            "peak_used": pool.peak,
            "cleaning": self.ended_bytes,
            "leases": len(self.table),
            "leased_bytes": self.leased_bytes,
            **self.counts,
        }

    def check(self) -> None:
        """Raise `InternalError` at the first invariant that does not hold."""
        self.table.check()
        self.pool.check()
