"""Free small blocks that a worker keeps: most allocations and frees ask nobody.

Owns a stack of objects for each size class, and four counters, in a buffer of 64-bit words that the caller
owns: a memory file that the manager maps, too, so that it can read what the cache of a worker held when the
worker died.  Not for several threads at a time: the caller has a lock.

Words of the buffer (`WORDS` in all; zeros are no cache: the first `WorkerCache` over it with ``fresh=True``
lays it out):

=====================  =====================================================================================
0 … CLASSES-1          of each class, the index of the word with the object on top of its stack
ALLOCATIONS, FREES     blocks that this worker has allocated and freed
ASKED, GIVEN           bytes of those, as they were asked for
FILLED                 number of the last batch from the manager that was put on a stack
LEAVING                objects in the outbox, and the number of their batch: ``number << 16 | count``
OUTBOX …               `MAX_BATCH` words: objects on their way to the manager
of each class          one word 0 (the end of the stack), then room for its capacity and one batch more
=====================  =====================================================================================

A worker that allocates what others free has more allocations than frees; the sums over all workers are what
is live.

Death at any point
------------------
Every step is ordered so that an object is in the buffer, or out, or lost with its worker, but never both in
the buffer and out:

* `take` counts, then lowers the stack, then returns.  Dead before the stack is lowered: the object is still
  in the buffer, and nobody has it.  Dead before it has returned: that one object is lost.
* `put` stores the object above the stack, then raises the stack, then counts.  Dead in between: that one
  object is lost.
* `fill` stores the batch above the stack, raises the stack, then notes the batch's number in FILLED.  The
  manager remembers what it has sent until FILLED says that it came; of a worker that died before, it takes
  that batch back *and* what is on the stacks, each object once.
* `surplus` copies the batch to the outbox, sets LEAVING, then lowers the stack: objects that are in both are
  taken back once.  When the batch has been sent, `sent` clears LEAVING.  The manager remembers the number of
  the last batch that it has got, and ignores an outbox with that number.

Counters are wrong by at most the one operation that death interrupted.
`contents` reads all this from the buffer of a dead worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dsm.errors import InternalError, UsageError
from dsm.memory.classes import BATCHES, CAPACITIES, CLASSES, MAX_BATCH

ALLOCATIONS: Final = CLASSES
FREES: Final = CLASSES + 1
ASKED: Final = CLASSES + 2
GIVEN: Final = CLASSES + 3
FILLED: Final = CLASSES + 4
LEAVING: Final = CLASSES + 5
OUTBOX: Final = CLASSES + 6
_STACKS: Final = OUTBOX + MAX_BATCH


def _layout() -> tuple[tuple[int, ...], tuple[int, ...], int]:
    bottoms, limits, place = [], [], _STACKS
    for batch, capacity in zip(BATCHES, CAPACITIES, strict=True):
        bottoms.append(place)
        limits.append(place + capacity)
        place += 1 + capacity + batch
    return tuple(bottoms), tuple(limits), place


#: By class: the word 0 below its stack, the last word that `put` uses; and the words of all.
_BOTTOMS, _LIMITS, WORDS = _layout()
#: Bytes of the buffer.
CACHE_BYTES: Final = 8 * WORDS


class WorkerCache:
    """The free small blocks of one worker.

    Parameters
    ----------
    words : memoryview
        `WORDS` words, cast to "Q".
    fresh : bool, default True
        Lay out an empty cache.  False: the buffer has one already.
    """

    __slots__ = ("_allocations", "_asked", "_frees", "_given", "_limits", "_words")

    def __init__(self, words: memoryview, *, fresh: bool = True) -> None:
        _verify(words)
        self._words = words
        self._limits = _LIMITS
        if fresh:
            for cls, bottom in enumerate(_BOTTOMS):
                words[bottom] = 0
                words[cls] = bottom
            for place in range(CLASSES, OUTBOX):
                words[place] = 0
        #: The counters, as they are in the buffer: not loading them saves 15 % of an operation's time.
        self._allocations, self._frees, self._asked, self._given = counters(words)

    def take(self, cls: int, nbytes: int) -> int:
        """Return an object of a class, for `nbytes` asked for; 0 if there is none: `fill` first."""
        words = self._words
        top = words[cls]
        address = words[top]
        if address:
            words[ALLOCATIONS] = self._allocations = self._allocations + 1
            words[ASKED] = self._asked = self._asked + nbytes
            words[cls] = top - 1
        return address

    def put(self, cls: int, address: int, nbytes: int) -> bool:
        """Keep an object that was allocated for `nbytes`; False if there is no room (see `surplus`)."""
        words = self._words
        top = words[cls]
        if top >= self._limits[cls]:
            return False
        top += 1
        words[top] = address
        words[cls] = top
        words[FREES] = self._frees = self._frees + 1
        words[GIVEN] = self._given = self._given + nbytes
        return True

    def fill(self, cls: int, addresses: Sequence[int], number: int) -> bool:
        """Put a batch from the manager on a stack, once; False: there is no room for all, nothing was done.

        Parameters
        ----------
        number : int
            Of the batch: the manager counts them for each worker, from 1; they are filled in in this order.
            One that was put here before is not put here again.
        """
        words = self._words
        if number <= words[FILLED]:
            return True
        top = words[cls]
        if len(addresses) > self._limits[cls] + BATCHES[cls] - top:
            return False
        for address in addresses:
            top += 1
            words[top] = address
        words[cls] = top
        words[FILLED] = number
        return True

    def surplus(self, cls: int) -> tuple[int, list[int]]:
        """Move a batch to the outbox; return its number and its objects.  `sent` must follow before the next.

        Raises
        ------
        InternalError
            The batch before it has not been sent.
        """
        words = self._words
        if words[LEAVING] & 0xFFFF:
            raise InternalError("a batch leaves a cache while another one is still in the outbox")
        top = words[cls]
        count = min(BATCHES[cls], top - _BOTTOMS[cls])
        addresses = [words[top - index] for index in range(count)]
        for index, address in enumerate(addresses):
            words[OUTBOX + index] = address
        number = (words[LEAVING] >> 16) + 1
        words[LEAVING] = number << 16 | count
        words[cls] = top - count
        return number, addresses

    def sent(self) -> None:
        """The batch in the outbox is the manager's now, even if this worker dies."""
        words = self._words
        words[LEAVING] = words[LEAVING] >> 16 << 16

    def held(self, cls: int) -> int:
        """Objects of a class that are here."""
        return self._words[cls] - _BOTTOMS[cls]

    def count_elsewhere(self, allocated: int, freed: int, asked: int, given: int) -> None:
        """Count blocks that did not go through the cache, so that the sums are those of all blocks."""
        words = self._words
        words[ALLOCATIONS] = self._allocations = self._allocations + allocated
        words[FREES] = self._frees = self._frees + freed
        words[ASKED] = self._asked = self._asked + asked
        words[GIVEN] = self._given = self._given + given


def counters(words: memoryview) -> tuple[int, int, int, int]:
    """Return allocations, frees, bytes asked for and bytes of those freed, of a worker that lives or not."""
    return words[ALLOCATIONS], words[FREES], words[ASKED], words[GIVEN]


def outbox(words: memoryview) -> tuple[int, tuple[int, ...]]:
    """Return the number of the last batch that was moved to the outbox, and what of it has not been sent."""
    number, count = words[LEAVING] >> 16, words[LEAVING] & 0xFFFF
    return number, tuple(words[OUTBOX : OUTBOX + count])


def contents(
    words: memoryview,
    sent: Mapping[int, Iterable[int]] | None = None,
    received: int = 0,
    classes: Iterable[int] = range(CLASSES),
) -> list[int]:
    """Return each object that the cache of a dead worker held, once: what is to be given back to the pool.

    Parameters
    ----------
    words : memoryview
        Its buffer.
    sent : mapping of int to iterable of int
        The batches that the manager has sent to it, by number; those up to FILLED may be forgotten.
    received : int
        Number of the last batch that the manager has got from it.
    classes : iterable of int
        Whose stacks are read; what is on its way counts whatever its class is.

    Raises
    ------
    UsageError
        The buffer is no cache (the worker wrote over it): nothing of it can be believed.
    """
    _verify(words)
    found: dict[int, None] = {}
    for cls in classes:
        bottom, top = _BOTTOMS[cls], words[cls]
        if not bottom <= top <= _LIMITS[cls] + BATCHES[cls]:
            raise UsageError(
                f"the cache of a worker is damaged: class {cls} ends at word {top}, out of its stack"
            )
        found.update(dict.fromkeys(words[bottom + 1 : top + 1]))
    count = words[LEAVING] & 0xFFFF
    if count > MAX_BATCH:
        raise UsageError(f"the cache of a worker is damaged: {count} objects in an outbox for {MAX_BATCH}")
    if words[LEAVING] >> 16 > received:
        found.update(dict.fromkeys(words[OUTBOX : OUTBOX + count]))
    for number, addresses in (sent or {}).items():
        if number > words[FILLED]:
            found.update(dict.fromkeys(addresses))
    found.pop(0, None)
    return list(found)


def _verify(words: memoryview) -> None:
    if words.format != "Q" or len(words) < WORDS:
        raise UsageError(
            f"a cache needs a buffer of {CACHE_BYTES} bytes cast to 'Q'; "
            f"this one has {words.nbytes} bytes of {words.format!r}"
        )
