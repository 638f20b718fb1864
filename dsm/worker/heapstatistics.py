"""What `Heap.statistics` returns: figures of all nodes, frozen at one moment.

Owns what follows from the figures; those of one pool are `dsm.wire.heaps.PoolFigures`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from dsm.wire import heaps


class PoolStatistics(heaps.PoolFigures, frozen=True):
    __doc__ = heaps.PoolFigures.__doc__

    @property
    def external_fragmentation(self) -> float:
        """The part of what is free that the largest block does not reach, 0 to 1."""
        return 1 - self.largest_free / self.free if self.free else 0.0


@dataclass(frozen=True)
class HeapStatistics:
    """A heap on all nodes.  All but counts and ratios are bytes.

    Attributes
    ----------
    allocated
        Asked for by live blocks.
    managed
        Of all its memory: extents, and regions of blocks that have their own.
    used, in_use
        Bytes of live blocks, with what sizes of classes and pages add; and how many blocks that are.
    cached, spare, free, largest_free, locked
        As in `PoolStatistics`, of all pools.
    peak
        Sum of the pools' peaks.
    direct, direct_bytes
        Blocks that are regions of their own, and their bytes.
    allocations, frees
        Blocks that were ever allocated, and freed, of the pools of nodes that live; direct ones by workers
        of such nodes.
    refused_frees
        Blocks that were freed and were free already (of blocks that went home in batches; else it is an
        error).
    lost_frees
        Blocks that were freed after the node of whose pool they were was lost: they were ignored.
    pools
        By node.
    silent
        Nodes that did not answer; their part is missing.
    """

    allocated: int
    managed: int
    used: int
    in_use: int
    cached: int
    spare: int
    free: int
    largest_free: int
    peak: int
    locked: int
    direct: int
    direct_bytes: int
    allocations: int
    frees: int
    refused_frees: int
    lost_frees: int
    pools: tuple[PoolStatistics, ...]
    silent: tuple[int, ...] = ()

    @property
    def internal_fragmentation(self) -> float:
        """The part of what is used that nobody asked for, 0 to 1."""
        return max(0.0, 1 - self.allocated / self.used) if self.used else 0.0

    @property
    def external_fragmentation(self) -> float:
        """The part of what is free that the largest block does not reach, 0 to 1."""
        return 1 - self.largest_free / self.free if self.free else 0.0


def statistics_of(counted: heaps.HeapCounted) -> HeapStatistics:
    """Return what the nodes have counted."""
    pools = counted.pools

    def total(name: str) -> int:
        return sum(getattr(pool, name) for pool in pools)

    return HeapStatistics(
        allocated=max(0, total("requested") + counted.block_bytes),
        managed=total("managed") + counted.block_bytes,
        used=total("used") + counted.block_bytes,
        in_use=total("in_use") + counted.blocks,
        cached=total("cached"),
        spare=total("spare"),
        free=total("free"),
        largest_free=max((pool.largest_free for pool in pools), default=0),
        peak=total("peak"),
        locked=total("locked"),
        direct=counted.blocks,
        direct_bytes=counted.block_bytes,
        allocations=total("allocations"),
        frees=total("frees"),
        refused_frees=total("refused"),
        lost_frees=total("lost"),
        pools=tuple(
            msgspec.convert(pool, PoolStatistics, from_attributes=True)
            for pool in pools
            if pool.extents or pool.peak
        ),
        silent=counted.silent,
    )
