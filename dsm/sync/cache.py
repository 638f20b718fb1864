"""Locks that are lent to this node: its threads pass them on among themselves, without a message.

Owns who holds and who waits for a lock while it is lent.  The home lends a lock, along with a grant, to the
node that takes it again and again while nobody else wants it; from then on the home knows only the node.

*What is owed.*  A lock that is released here is released without a message, and so without the release of
the node (its writes brought to their homes, acknowledged, their notices known) that goes before one.  The
node owes it, and pays when the lock goes back: first the release of the node, then the lock.  The next
holder on the same node is owed nothing: it sees the same frames.

*Going back.*  The home *recalls* the lock when a thread of another node asks; the node answers at once,
whether a thread holds the lock or not.  If one does, the home is told which, and everything is as if the lock
had never been lent: that thread's release is one with a message, which pays for those before it.  The node
also gives a lock back on its own, when the lock's home must know the holder (a condition), or a worker goes.
Threads that wait here ask the home then, behind the one of the other node.

*What crosses.*  One link carries everything between two nodes, in order.

* An acquire or cancel that was sent before the grant that lends arrives at a home that has lent the lock to
  its sender: the home drops it, with those that it had in its queue.  The node knows that they are without an
  answer and takes them here when the grant comes: `lend`.
* A cancel among these finds nothing at the home (TOO_LATE, to nobody); the node ends that call itself.
* A recall meets a lock that went back on its own, or is about to: it is ignored.  It cannot meet the next
  lending, which follows it on the link.
* A release crosses the recall: when it is first, the lock goes back free; else it follows the lock home.
* A grant for a call that nobody waits for any more: the lock goes back at once.

Death.  As at the home: who gets a lock whose owner died here is told, and if nobody waits here, the home is
told with the lock.  A node that dies takes what it owed along: the home takes its death for the owner's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from dsm.errors import InternalError, Status
from dsm.sync.reply import Owner, Reply
from dsm.sync.waiting import Waiter
from dsm.wire.calls import Returned, returned_word

_OWNER_DIED = int(Status.OWNER_DIED)
_NOT_OWNER = int(Status.NOT_OWNER)
_USAGE = int(Status.USAGE)


class Given(msgspec.Struct, frozen=True, gc=False):
    """A lock goes back: who holds it, the word that says the rest, and who has to ask the home now."""

    object: int
    owner: Owner
    word: int
    waiting: tuple[Waiter, ...]


class _Lent:
    """One lock."""

    __slots__ = ("cause", "died", "goes_back", "owes", "owner", "since", "waiting")

    def __init__(self, owner: Owner | None, since: int, waiting: Iterable[Waiter]) -> None:
        #: None: it is free; then nobody waits, unless it goes back.
        self.owner = owner
        self.since = since
        self.waiting = deque(waiting)
        #: It was released without the release of the node.
        self.owes = False
        #: The release of the node that it owes is under way; the lock follows it.
        self.goes_back = False
        #: As in `dsm.sync.lock`.
        self.died = False
        self.cause = 0


class LockCache:
    """The locks that are lent to one node.

    Parameters
    ----------
    node
        This node's number.
    """

    def __init__(self, node: int) -> None:
        self._node = node
        self._lent: dict[int, _Lent] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._lent

    def __iter__(self) -> Iterator[int]:
        """Return the numbers of the locks."""
        return iter(list(self._lent))

    def lend(self, number: int, owner: Owner | None, waiting: Iterable[Waiter], now: int) -> None:
        """Take a lock that was granted to `owner` (None: nobody wants it any more) and lent with it.

        `waiting`: this node's calls for the lock that the home has, and has dropped.
        """
        if number in self._lent:
            raise InternalError(f"lock {number} was lent twice")
        self._lent[number] = _Lent(owner, now, waiting)

    def owner(self, number: int) -> Owner | None:
        """Return who holds a lock that is lent."""
        return self._lent[number].owner

    def owes(self, number: int) -> bool:
        """Whether the node's release must go before the lock."""
        return self._lent[number].owes

    def acquire(self, number: int, ticket: int, owner: Owner, now: int) -> list[Reply]:
        """Handle an acquire: as `Lock.request`."""
        lent = self._lent[number]
        if lent.owner == owner:
            return [self._reply(number, ticket, _USAGE)]
        lent.waiting.append(Waiter(self._node, ticket, owner, now))
        return [] if lent.owner is not None else self._pass_on(number, lent, now)

    def release(self, number: int, ticket: int, owner: Owner, inconsistent: bool, now: int) -> list[Reply]:
        """Handle a release: as `Lock.request`; the release of the node is owed."""
        lent = self._lent[number]
        if lent.owner != owner:
            return [self._reply(number, ticket, _NOT_OWNER)]
        lent.died = inconsistent
        lent.owes = True
        return [*self._pass_on(number, lent, now), self._reply(number, ticket)]

    def cancel(self, number: int, ticket: int) -> bool:
        """End a call that waits here; whether there was one."""
        lent = self._lent.get(number)
        return lent is not None and _forget(lent, lambda waiter: waiter.ticket == ticket)

    def forget(self, worker: int) -> None:
        """Forget the calls of a worker that is gone."""
        for lent in self._lent.values():
            _forget(lent, lambda waiter: waiter.owner[0] == worker)

    def gone(self, worker: int, cause: int, now: int) -> list[Reply]:
        """A worker is gone, and its writes are in this node's frames: pass on what it held."""
        self.forget(worker)
        replies: list[Reply] = []
        for number, lent in self._lent.items():
            if lent.owner is not None and lent.owner[0] == worker:
                lent.died, lent.cause = True, cause
                lent.owes = True
                replies += self._pass_on(number, lent, now)
        return replies

    def recall(self, number: int) -> bool:
        """The lock is wanted back; False: it is not here, or goes back already.

        When it then `owes`, the node's release comes first, then `give_back`; else `give_back` at once.
        """
        lent = self._lent.get(number)
        if lent is None or lent.goes_back:
            return False
        lent.owes = lent.owes and lent.owner is None
        lent.goes_back = lent.owes
        return True

    def give_back(self, number: int) -> Given | None:
        """Return what goes to the home; None: the lock is not here (its home died)."""
        lent = self._lent.pop(number, None)
        if lent is None:
            return None
        what = (Returned.HELD if lent.owner is not None else 0) | (Returned.DIED if lent.died else 0)
        return Given(number, lent.owner or (0, 0), returned_word(what, lent.cause), tuple(lent.waiting))

    def drop(self, number: int) -> None:
        """Forget a lock whose home died."""
        self._lent.pop(number, None)

    def state(self, number: int) -> tuple[Owner | None, int, tuple[Waiter, ...], bool]:
        """Return who holds a lock, since when, who waits, and whether its owner died, for status."""
        lent = self._lent[number]
        return lent.owner, lent.since, tuple(lent.waiting), lent.died

    def _pass_on(self, number: int, lent: _Lent, now: int) -> list[Reply]:
        """Grant a lock to the next waiter, or let it be free."""
        if not lent.waiting or lent.goes_back:
            lent.owner = None
            return []
        waiter = lent.waiting.popleft()
        lent.owner, lent.since = waiter.owner, now
        if lent.died:
            lent.died = False
            return [self._reply(number, waiter.ticket, _OWNER_DIED, lent.cause)]
        return [self._reply(number, waiter.ticket)]

    def _reply(self, number: int, ticket: int, status: int = 0, result: int = 0) -> Reply:
        return Reply(self._node, ticket, status, result, number)


def _forget(lent: _Lent, is_meant: Callable[[Waiter], bool]) -> bool:
    before = len(lent.waiting)
    lent.waiting = deque(waiter for waiter in lent.waiting if not is_meant(waiter))
    return len(lent.waiting) < before
