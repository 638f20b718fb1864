"""The invariants of a pool: spans and blocks are those of its buddies, figures are sums of what there is.

Owns no state.  What is so of extents by themselves, `dsm.memory.extents` verifies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.errors import InternalError
from dsm.memory.span import Span

if TYPE_CHECKING:
    from dsm.memory.pool import Pool


def check(pool: Pool) -> None:
    """Verify every invariant.

    Raises
    ------
    InternalError
        Names the first that does not hold.
    """
    pool._extents.check()
    blocks: dict[int, int] = {}
    spans: dict[Span, None] = {}
    free = 0
    for extent in pool._extents:
        address = extent.address
        free += extent.buddy.free_bytes
        pieces = {address + offset: size for offset, size in extent.buddy.blocks().items()}
        granules = 0
        for span in dict.fromkeys(extent.spans.values()):
            if pieces.pop(span.start, 0) != span.end - span.start:
                raise InternalError(f"pool: the span at {span.start:#x} is no block of its buddy")
            if any(extent.spans.get(granule) is not span for granule in extent.granules(span)):
                raise InternalError(f"pool: the span at {span.start:#x} is not found by its addresses")
            span.check()
            if not span.live:
                raise InternalError(f"pool: the span at {span.start:#x} is empty and was not given back")
            if (span in pool._partial[span.cls]) != (span.live < span.count):
                raise InternalError(
                    f"pool: the span at {span.start:#x} is not filed under what it has to give"
                )
            spans[span] = None
            granules += len(extent.granules(span))
        if granules != len(extent.spans):
            raise InternalError(f"pool: a span of the extent at {address:#x} is found where it is not")
        blocks.update(pieces)
    for address in pool._asked:
        size = blocks.pop(address - pool._shifts.get(address, 0), None)
        if size is None:
            raise InternalError(f"pool: the block at {address:#x} is none of its buddy's")
    if blocks:
        raise InternalError(f"pool: the block at {min(blocks):#x} belongs to nobody")
    if not pool._shifts.keys() <= pool._asked.keys():
        raise InternalError("pool: a shift is kept of a block that is not out")
    partial = sum(len(filed) for filed in pool._partial)
    if partial != sum(span.live < span.count for span in spans):
        raise InternalError("pool: a span is filed that does not exist any more")
    _check_totals(pool, list(spans), free)


def _check_totals(pool: Pool, spans: list[Span], free: int) -> None:
    span_bytes = sum(span.end - span.start for span in spans)
    object_bytes = sum(span.live * span.size for span in spans)
    managed = sum(extent.buddy.nbytes for extent in pool._extents)
    for name, kept, true in (
        ("managed bytes", pool._managed, managed),
        ("used bytes", pool._used, managed - free - span_bytes + object_bytes),
        ("asked bytes", pool._asked_bytes, sum(pool._asked.values())),
        ("objects", pool._objects, sum(span.live for span in spans)),
        ("object bytes", pool._object_bytes, object_bytes),
        ("spans", pool._spans, len(spans)),
        ("span bytes", pool._span_bytes, span_bytes),
    ):
        if kept != true:
            raise InternalError(f"pool: {name} are counted as {kept} and are {true}")
    if pool._peak < pool._used or pool._peak_managed < pool._managed:
        raise InternalError("pool: a peak is lower than what is used or managed now")
