"""Which pages an array covers, and the two things done to pages: prefetching and pinning.

Owns the way from an array to a range of pages, and the record of what this process has pinned (the
shim keeps one bit a page; pins may overlap).
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from dsm import _native
from dsm.errors import ClosedError, DSMError, LeaseExpiredError, LimitError, PeerError, Status, UsageError
from dsm.wire.calls import Op
from dsm.worker import calls, lacking
from dsm.worker.pagetable import COLUMNS
from dsm.worker.regions import Region, RegionTable, label, lease_over, name_of

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # numpy 1
    from numpy import byte_bounds  # type: ignore[no-redef, attr-defined, unused-ignore]


_PAGE_ERRORS = {
    Status.PAGE_LOST: "some of them went away with node {peer}, which is gone; the others can still be used",
    Status.PAGE_TIMEOUT: "asked of node {peer}, they did not all come in time: who has them is stopped, cut "
    "off, or pins them (see `dsm status`); nothing is lost: try again, or raise DSM_PAGE_TIMEOUT",
}


class PageRange(NamedTuple):
    """Pages of a region: `pages` of them from number `page` on."""

    region: int
    page: int
    pages: int


def region_of(array: Any, table: RegionTable) -> tuple[Region, int] | None:
    """Return the open region in which all of `array` lies and the offset of its lowest byte, or None."""
    low, high = byte_bounds(array) if array.size else (array.__array_interface__["data"][0],) * 2
    found = _native.region_find(low)
    if found is None and low == high:
        found = _native.region_find(low - 1)  # the empty view behind a region's last byte
        found = found and (found[0], found[1] + 1)
    region = table.get(found[0]) if found else None
    if region is None or found is None or found[1] + (high - low) > region._described.size:
        return None
    return region, found[1]


def expired(array: np.ndarray[Any, Any]) -> LeaseExpiredError | None:
    """Return the error for an array of a lease that has ended; None for any other array."""
    found = _native.region_find(array.__array_interface__["data"][0])
    return lease_over(found[0]) if found else None


def pages_of(array: Any, table: RegionTable) -> PageRange | None:
    """Return the pages that `array` (an array or a `Region`) covers; None when it is empty.

    A view with strides covers everything between its lowest and its highest byte.

    Raises
    ------
    UsageError
        When it is no array, or does not lie in an open region.
    LeaseExpiredError
        When it lies in a lease that has ended.
    """
    if isinstance(array, Region):
        array._check_open()
        array = np.asarray(array)
    if not isinstance(array, np.ndarray):
        raise UsageError(
            f"{type(array).__name__} is not an array of a dsm region; pass an array, a view, or a Region"
        )
    found = region_of(array, table)
    if found is None:
        over = expired(array)
        if over is not None:
            raise over
        raise UsageError(
            f"the array of shape {array.shape} and dtype {array.dtype} does not lie in an open dsm region; "
            "pass what node.array() returned, or a view of it (not a copy)"
        )
    if not array.size or not array.itemsize:
        return None
    region, offset = found
    low, high = byte_bounds(array)
    first = offset // region.page_size
    return PageRange(region.number, first, (offset + high - low - 1) // region.page_size - first + 1)


def check_fits(pages: PageRange, page_size: int, doing: str) -> None:
    """Refuse to bring more to this node than it could ever hold."""
    needed, most = pages.pages * page_size, lacking.memory_of_machine()
    if needed > most:
        raise LimitError(
            f"{doing} {_words(pages)} needs {needed} bytes on this node, whose machine has {most} of memory "
            "and swap; take a part at a time"
        )


def check_table(pages: PageRange, nodes: int) -> None:
    """Refuse a page table of `nodes` nodes that no memory could hold."""
    rows = pages.pages * nodes
    needed, most = rows * COLUMNS.itemsize, lacking.memory_of_machine()
    if needed > most:
        raise LimitError(
            f"the page table of {_words(pages)} has {rows} rows of {COLUMNS.itemsize} bytes, more than the "
            f'{most} bytes of memory and swap of this machine; take a part at a time, or nodes="here"'
        )


def prefetch(pages: PageRange, write: bool) -> None:
    """Bring `pages` here and map them."""
    _bring(Op.PREFETCH, pages, write, f"prefetching {_words(pages)}")
    try:
        _native.region_apply(*pages)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        raise _closed(pages, f"prefetching {_words(pages)}") from None


def rehome(pages: PageRange) -> int:
    """Make this node the home of `pages`; return of how many it is."""
    return _bring(Op.REHOME, pages, False, f"moving the home of {_words(pages)}")


def _bring(
    op: Op, pages: PageRange, write: bool, what: str, undo: Callable[[int], calls.Request] | None = None
) -> int:
    """Ask for pages; the error says which node they went away with, or were asked of."""
    peer: int | None = None

    def meaning(status: int, result: int) -> str | None:
        nonlocal peer
        if not result or status not in _PAGE_ERRORS:
            return None
        peer = result - 1
        return _PAGE_ERRORS[Status(status)].format(peer=peer)

    try:
        return calls.ask(op, *pages, int(write), what=what, undo=undo, meaning=meaning)
    except ClosedError:
        raise _closed(pages, what) from None
    except PeerError as error:
        error.region, error.peer = name_of(pages.region), peer
        raise


def _closed(pages: PageRange, what: str) -> DSMError:
    """Return the error for a region that is closed here: destroyed, or a lease that is over."""
    return lease_over(pages.region) or calls.failure(Status.CLOSED, what)


def _words(pages: PageRange) -> str:
    return f"pages {pages.page} to {pages.page + pages.pages - 1} of {label(pages.region)}"


class PinTable:
    """What this process holds pinned; pins may overlap."""

    def __init__(self) -> None:
        #: Reentrant: a signal handler may pin, too, while it is held.
        self._mutex = threading.RLock()
        self._held: list[PageRange] = []

    def clear(self) -> None:
        """Forget every pin: the node was closed, or this is a child of fork, which holds none."""
        self._mutex, self._held = threading.RLock(), []

    def hold(self, pages: PageRange, write: bool) -> None:
        """Bring `pages` here and hold them."""
        undo = (Op.UNPIN, *pages, int(write))
        _bring(Op.PIN, pages, write, f"pinning {_words(pages)}", lambda status: undo)
        with self._mutex:
            self._held.append(pages)
            try:
                _native.region_apply(*pages, True)
                return
            except OSError as error:
                self._held.remove(pages)
                reason = error
        with contextlib.suppress(ClosedError):
            calls.ask(Op.UNPIN, *pages, int(write), what=f"unpinning {_words(pages)}", brief=True)
        if reason.errno == errno.ENOENT:  # closed since it was granted: destroyed, or a lease that is over
            raise _closed(pages, f"pinning {_words(pages)}") from None
        raise LimitError(
            f"{_words(pages)} cannot be mapped: {reason.strerror}; pin less or raise vm.max_map_count"
        )

    def let_go(self, pages: PageRange, write: bool) -> None:
        """End one `hold` of the same pages."""
        with self._mutex:
            if pages not in self._held:
                return  # the node was closed meanwhile
            self._held.remove(pages)
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile: there is nothing to let go
                for page, count in self._uncovered(pages):
                    _native.region_apply(pages.region, page, count, False)
                for held in list(self._held):  # by a signal handler that came in between
                    if (
                        held.region == pages.region
                        and held.page < pages.page + pages.pages
                        and (pages.page < held.page + held.pages)
                    ):
                        _native.region_apply(*held, True)
        calls.ask(Op.UNPIN, *pages, int(write), what=f"unpinning {_words(pages)}", brief=True)

    def _uncovered(self, pages: PageRange) -> list[tuple[int, int]]:
        """Return the runs of `pages` that no other pin covers."""
        runs, page, end = [], pages.page, pages.page + pages.pages
        for other in sorted(held for held in self._held if held.region == pages.region):
            if other.page > page:
                runs.append((page, min(other.page, end) - page))
            page = max(page, other.page + other.pages)
            if page >= end:
                return runs
        return [*runs, (page, end - page)]


class Pin:
    """Pages held on this node while the ``with`` block runs; made by `Node.pin`."""

    def __init__(
        self, table: PinTable, array: Any, pages: PageRange | None, write: bool, keeps_old: bool
    ) -> None:
        self._table = table
        #: Under it this thread cannot be shown what others have written.
        self._keeps_old = keeps_old and pages is not None
        self._array = array
        self._pages = pages
        self._write = write
        self._holding = False

    def __enter__(self) -> Any:
        if self._holding:
            raise UsageError("this pin is held already; call node.pin() again for a second one")
        if self._pages is not None:
            self._table.hold(self._pages, self._write)
        calls.hold_old_pages(int(self._keeps_old))
        self._holding = True
        return self._array

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holding = False
        calls.hold_old_pages(-int(self._keeps_old))
        if self._pages is not None:
            self._table.let_go(self._pages, self._write)
