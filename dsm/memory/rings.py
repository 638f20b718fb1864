"""A ring of words from one writer to one reader: blocks on their way home.

Owns the order of steps on a buffer of 64-bit words that both map: a worker puts in which blocks of other
pools it has freed, its manager takes them out, at any time, also when the worker has died.  Neither waits
for the other.

Words of the buffer: how many were ever taken out, how many were ever put in, then `RING_SLOTS` entries of two
words: a block's address with the node of its pool in the highest 16 bits, and the bytes that were asked for.
Both are written before the entry is counted.
"""

from __future__ import annotations

from typing import Final

from dsm.errors import UsageError

#: Entries of a ring.
RING_SLOTS: Final = 256
RING_WORDS: Final = 2 + 2 * RING_SLOTS
_OUT, _IN, _FIRST = 0, 1, 2
_NODE_SHIFT = 48
_ADDRESS = (1 << _NODE_SHIFT) - 1


def entry(node: int, address: int) -> int:
    """Return the first word for a block of a node's pool."""
    return node << _NODE_SHIFT | address


class Ring:
    """A ring over `words`, a memoryview cast to "Q" of at least `RING_WORDS`; zeros are an empty one."""

    __slots__ = ("_words",)

    def __init__(self, words: memoryview) -> None:
        if words.format != "Q" or len(words) < RING_WORDS:
            raise UsageError(f"a ring needs {8 * RING_WORDS} bytes cast to 'Q', not {words.nbytes}")
        self._words = words

    def __len__(self) -> int:
        return self._words[_IN] - self._words[_OUT]

    def put(self, node: int, address: int, nbytes: int) -> bool:
        """Put a block in; False when the ring is full.

        Nobody may put another one in meanwhile, no signal handler of the same thread either: a worker does it
        with `dsm._native.caches.put_away`.
        """
        words = self._words
        at = words[_IN]
        if at - words[_OUT] >= RING_SLOTS:
            return False
        first = _FIRST + 2 * (at % RING_SLOTS)
        words[first], words[first + 1] = entry(node, address), nbytes
        words[_IN] = at + 1
        return True

    def take(self) -> dict[int, list[tuple[int, int]]]:
        """Take everything out: addresses and bytes, by node.

        Raises
        ------
        UsageError
            The writer wrote over it: nothing of it can be believed.
        """
        words = self._words
        first, end = words[_OUT], words[_IN]
        if not 0 <= end - first <= RING_SLOTS:
            raise UsageError(f"the ring of a worker is damaged: it has {end - first} of {RING_SLOTS} entries")
        found: dict[int, list[tuple[int, int]]] = {}
        for at in range(first, end):
            place = _FIRST + 2 * (at % RING_SLOTS)
            word, nbytes = words[place : place + 2]
            found.setdefault(word >> _NODE_SHIFT, []).append((word & _ADDRESS, nbytes))
        words[_OUT] = end
        return found
