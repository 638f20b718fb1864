"""The blocks of a pool in debug mode: who allocated each, and those that were freed a short while ago.

Owns what is known of each block, by the address that its program has.  The memory of a freed block is kept in
quarantine: who writes there all the same is found when it leaves.  Then a worker looks at it (a manager has
not always the pages), and says that it may be used again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from dsm.errors import DSMError, HeapCorruptionError, UsageError
from dsm.wire.heaps import MAX_PLACE, DebugBlock

#: Blocks, and bytes of them, that stay in quarantine.
MAX_BLOCKS = 256
MAX_BYTES = 16 * 1024 * 1024
#: Blocks that may have left it without having been looked at: their workers may have died.
MAX_RETIRING = 1024
#: Blocks of one answer.
LISTED = 64


class Quarantine:
    """What is known of the blocks of one pool.

    Parameters
    ----------
    heap
        Name of the heap, for messages.
    """

    def __init__(self, heap: str) -> None:
        self._heap = heap
        #: By address: blocks that are live, that were freed, and that are being looked at.
        self._live: dict[int, DebugBlock] = {}
        self._freed: OrderedDict[int, DebugBlock] = OrderedDict()
        self._retiring: OrderedDict[int, DebugBlock] = OrderedDict()
        self._bytes = 0
        #: Live blocks whose guards do not stand yet, or not any more: a worker writes them, or has died then.
        self._open: set[int] = set()

    def __len__(self) -> int:
        return len(self._live) + len(self._freed) + len(self._retiring)

    def allocated(self, address: int, nbytes: int, align: int, place: str) -> None:
        """Note a block that was allocated; it is not `listed` before it is `guarded`."""
        self._open.add(address)
        self._live[address] = DebugBlock(address, nbytes, align, _place(place))

    def guarded(self, address: int) -> None:
        """The guards of a block stand."""
        self._open.discard(address)

    def find(self, address: int, place: str) -> DebugBlock:
        """Return the live block at an address, which the program at `place` is about to free.

        Raises
        ------
        HeapCorruptionError
            It was freed already.
        UsageError
            There is none.
        """
        block = self._live.get(address)
        if block is not None:
            self._open.add(address)
            return block
        raise self._no_block(address, place)

    def undone(self, address: int) -> DebugBlock:
        """Forget a block that its program never got: nobody has written guards; raises as `find` does."""
        block = self.find(address, "")
        del self._live[address]
        self._open.discard(address)
        return block

    def freed(self, address: int, place: str) -> tuple[list[DebugBlock], list[DebugBlock]]:
        """Put a block into quarantine; raises as `find` does.

        Returns
        -------
        leaving
            Blocks that leave it, to be looked at.
        forgotten
            Blocks that nobody has looked at in time: their memory can be used again.
        """
        block = self.find(address, place)
        del self._live[address]
        self._open.discard(address)
        self._freed[address] = DebugBlock(address, block.nbytes, block.align, block.place, _place(place))
        self._bytes += block.nbytes
        leaving: list[DebugBlock] = []
        while len(leaving) < LISTED and (len(self._freed) > MAX_BLOCKS or self._bytes > MAX_BYTES):
            _, oldest = self._freed.popitem(last=False)
            self._bytes -= oldest.nbytes
            self._retiring[oldest.address] = oldest
            leaving.append(oldest)
        forgotten = []
        while len(self._retiring) > MAX_RETIRING:
            forgotten.append(self._retiring.popitem(last=False)[1])
        return leaving, forgotten

    def retire(self, addresses: Iterable[int]) -> list[DebugBlock]:
        """Blocks were looked at: return those whose memory can be used again."""
        retired = (self._retiring.pop(address, None) for address in addresses)
        return [block for block in retired if block is not None]

    def resting(self) -> list[DebugBlock]:
        """Return the blocks that are free for their program, and not for others."""
        return [*self._freed.values(), *self._retiring.values()]

    def listed(self, after: int) -> tuple[tuple[DebugBlock, ...], bool]:
        """Return blocks behind an address whose guards stand, live or freed; whether there are more."""
        kept = {**self._freed, **self._live}
        addresses = sorted(address for address in kept if address > after and address not in self._open)
        return tuple(kept[address] for address in addresses[:LISTED]), len(addresses) > LISTED

    def _no_block(self, address: int, place: str) -> DSMError:
        earlier = self._freed.get(address) or self._retiring.get(address)
        if earlier is None:
            return UsageError(f"{address:#x} is no block of heap {self._heap!r}; pass what alloc() returned")
        return HeapCorruptionError(
            f"double free: the block of {earlier.nbytes} bytes at {address:#x} of heap {self._heap!r}, "
            "allocated "
            f"at {earlier.place}, was freed at {earlier.freed} and again at {_place(place)}; free it once"
        )


def _place(place: str) -> str:
    return place[-MAX_PLACE:] or "an unknown place"
