"""Regions as this process has them mapped: `Region`, and the table of those that are open.

Owns mapping (one region once, at its address), the numpy arrays over the memory and what is known of
a region's name after it was closed.  It knows the session's requests about regions, not how they are
answered.

There is no lock: a signal handler that comes in here may map and close regions itself.  Regions are mapped,
and handles of leases counted, by the thread alone that receives the manager's answers, and it alone closes
a region that may be opened again.  One that has ended for everybody is closed by whoever hears of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dsm import _native, proc, types
from dsm.errors import (
    AddressRangeError,
    ClosedError,
    InternalError,
    LeaseExpiredError,
    LimitError,
    NodeLostError,
    UsageError,
)
from dsm.limits import LEASE_GUARD_PART
from dsm.types import RegionOptions
from dsm.wire import control, leasing
from dsm.worker import lacking, layouts
from dsm.worker.session import Descriptors, Session

if TYPE_CHECKING:
    from dsm.worker.node import Node

R = TypeVar("R", control.Opened, leasing.LeaseOpened)


class Region:
    """A range of shared memory, at the same address in every worker of the cluster.

    Made by `Node.region`; arrays have one too.  The addresses stay reserved after it was closed, so
    its arrays can be touched at any time: they raise `ClosedError` then.
    """

    def __init__(self, node: Node, described: types.Region) -> None:
        self._node = node
        self._described = described
        #: How a child of fork opens it anew.
        self._opening: control.OpenRegion | leasing.OpenLease = control.OpenRegion(described.region)
        #: Handles of the lease that it is, which the thread counts that receives answers: the last one may
        #: close it.
        self._handles = 0

    @property
    def number(self) -> int:
        """Number of the region, never used again in its cluster."""
        return self._described.region

    @property
    def name(self) -> str | None:
        """Its name; None for an anonymous one."""
        return self._described.options.name

    @property
    def address(self) -> int:
        """Address of its first byte, the same in every worker."""
        return self._described.address

    @property
    def size(self) -> int:
        """Bytes, as they were asked for."""
        return self._described.options.nbytes

    @property
    def page_size(self) -> int:
        """Bytes of a page, the unit that moves between nodes."""
        return self._described.options.page_size

    @property
    def options(self) -> RegionOptions:
        """What its creator chose."""
        return self._described.options

    @property
    def closed(self) -> bool:
        """Whether this process cannot use it any more: destroyed here, or the node was closed."""
        return self._node._regions.get(self.number) is not self

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The whole region as bytes: arrays made from it keep this object alive."""
        return {"version": 3, "shape": (self.size,), "typestr": "|u1", "data": (self.address, False)}

    @property
    def buffer(self) -> memoryview:
        """The region as a writable memoryview of bytes."""
        everything: Any = np.asarray(self)
        return memoryview(everything)

    def array(
        self, shape: layouts.ShapeLike, dtype: npt.DTypeLike = "f8", offset: int = 0, order: str = "C"
    ) -> np.ndarray[Any, Any]:
        """Return an array over a part of the region.

        Parameters
        ----------
        shape
            An integer or a tuple of integers.
        dtype
            Any dtype without Python objects.
        offset
            Byte of the region where the array begins.
        order
            ``"C"`` or ``"F"``.

        Returns
        -------
        numpy.ndarray
            A plain, writable array; no copy.

        Raises
        ------
        UsageError
            When the array would not lie inside the region.
        ClosedError
            When the region was destroyed or the node closed.
        """
        self._check_open()
        return self._cut(np.asarray(self), shape, dtype, offset, order)

    def _cut(
        self,
        memory: np.ndarray[Any, Any],
        shape: layouts.ShapeLike,
        dtype: npt.DTypeLike,
        offset: int,
        order: str,
    ) -> np.ndarray[Any, Any]:
        """Return a checked array over a part of `memory`, which is this region's bytes."""
        options = layouts.array_options(
            None, shape, dtype, consistency="sequential", page_size=4096, home=0, fill=0, order=order
        )
        if (
            isinstance(offset, bool)
            or not isinstance(offset, int)
            or offset < 0
            or offset + options.nbytes > self.size
        ):
            raise UsageError(
                f"an array of {options.nbytes} bytes at offset {offset!r} does not lie in {self!r}; "
                f"it has {self.size} bytes"
            )
        assert options.layout is not None
        return _view(memory, options.layout, offset)

    def _whole(self) -> np.ndarray[Any, Any]:
        """Return the array that this region was created for."""
        layout = self.options.layout
        if layout is None:
            raise UsageError(
                f"region {self.name!r} was made by node.region() and has no shape or dtype; "
                f"use node.region({self.name!r}).array(shape, dtype)"
            )
        return _view(np.asarray(self), layout, 0)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"{self!r} is closed: it was destroyed, or its node closed; open it again")

    def destroy(self) -> None:
        """End the region for every worker; touching it raises `ClosedError` from now on."""
        self._node.destroy(self)

    def __repr__(self) -> str:
        return f"<dsm.Region {self.name or self.number!r}: {self.size} bytes at {self.address:#x}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_region, (self.number,)


def _view(memory: np.ndarray[Any, Any], layout: types.ArrayLayout, offset: int) -> np.ndarray[Any, Any]:
    dtype = layouts.decode_dtype(layout.dtype)
    order: Any = layout.order
    return np.ndarray(tuple(layout.shape), dtype, buffer=memory, offset=offset, order=order)


def _open_region(number: int) -> Region:
    from dsm.worker.attach import attach

    return attach()._regions.open(number)


#: What happened to a lease, for messages.
LEASE_IS_OVER = "ran out, or was released; its memory is gone: lease anew, and renew in time"

#: Names of the regions that this process has seen, also after they were closed; None: anonymous.
_names: dict[int, str | None] = {}


#: Ids of those among them that are, or were, leases, as messages show them.
_leases: dict[int, str] = {}

#: Those that were closed, oldest first: what was closed long ago is forgotten, or a process that takes leases
#: for days would grow for ever.
_closed: OrderedDict[int, None] = OrderedDict()
_CLOSED_KNOWN = 65536


def _note_closed(number: int) -> None:
    _closed[number] = None
    if len(_closed) > _CLOSED_KNOWN:
        old, _ = _closed.popitem(last=False)
        _names.pop(old, None)
        _leases.pop(old, None)


def name_of(number: int) -> str | None:
    """Return the name of a region; None when it has none, or is not known here."""
    return _names.get(number)


def label(number: int) -> str:
    """Return how messages call a region."""
    lease = _leases.get(number)
    if lease is not None:
        return f"lease {lease}"
    name = name_of(number)
    if name is not None:
        return f"region {name!r}"
    return f"anonymous region {number}" if number in _names else f"region {number}"


def is_lease(number: int) -> bool:
    """Whether that region is, or was, a lease of a node that this process has not left since."""
    return number in _leases


def lease_over(number: int) -> LeaseExpiredError | None:
    """Return what use of a region that is closed raises if it was a lease; else None."""
    lease = _leases.get(number)
    return None if lease is None else LeaseExpiredError(f"lease {lease} {LEASE_IS_OVER}")


class _CrossedError(Exception):
    """An answer to open a region was sent before the manager heard that this process had closed it."""


class RegionTable:
    """The regions that this process has mapped, by number."""

    def __init__(self, node: Node, session: Session) -> None:
        self._node = node
        self._session = session
        self._open: dict[int, Region] = {}

    def get(self, number: int) -> Region | None:
        """Return the open region of that number."""
        return self._open.get(number)

    def create(self, asked: RegionOptions, ready: bool = True) -> tuple[Region, bool]:
        """Create, or open what has this name; returns the region and whether it was created."""
        try:
            undo = None if ready else self._undo_create
            opened = self._ask(control.CreateRegion(asked, ready), control.Opened, self._arrived, undo)
        except UsageError:
            self._check_listed(asked, ready)  # it knows dtypes and fills, the manager bytes
            raise
        if not opened.created:
            layouts.check_same(asked, opened.region.options, contents=ready)
        return self._found(opened), opened.created

    def listed(self) -> list[types.Region]:
        """Return the named regions of the cluster."""
        found: list[types.Region] = []
        while True:
            after = found[-1].region if found else 0
            part, _ = self._session.call(control.ListRegions(after), control.RegionList)
            found += part.regions
            if not part.more:
                return found

    def _check_listed(self, asked: RegionOptions, ready: bool) -> None:
        for described in self.listed():
            if described.options.name == asked.name:
                layouts.check_same(asked, described.options, contents=ready)

    def open(self, key: str | int) -> Region:
        """Open an existing region by name or number."""
        return self._found(self._ask(control.OpenRegion(key), control.Opened, self._arrived))

    def _ask(
        self,
        request: Any,
        expect: type[R],
        arrived: Callable[[R, Descriptors], None],
        undo: Callable[[R], Any] | None = None,
    ) -> R:
        """Ask for a region, which is mapped when its answer has arrived."""
        while True:
            with contextlib.suppress(_CrossedError):  # it is asked behind the word that it was closed now
                return self._session.call(request, expect, arrived=arrived, undo=undo)[0]

    def lease(
        self,
        request: leasing.CreateLease | leasing.OpenLease,
        opening: leasing.OpenLease,
        lease: str,
        arrived: Callable[[leasing.LeaseOpened], None],
        undo: leasing.ReleaseLease | None = None,
    ) -> tuple[Region, leasing.LeaseOpened]:
        """Make or open a lease.

        Parameters
        ----------
        request
            What to ask.
        opening
            How a child of fork opens it.
        lease
            Its id, as messages show it.
        arrived
            Called, before any later word of the manager is heard, when it is mapped.
        undo
            What undoes the request when this call is interrupted.
        """
        counted: list[Region] = []
        given_up = False

        def mapped(opened: leasing.LeaseOpened, received: Descriptors) -> None:
            try:
                self._arrived(opened, received)
            except ClosedError:  # it ended before it was mapped
                raise LeaseExpiredError(f"lease {lease} {LEASE_IS_OVER}") from None
            _leases[opened.region.region] = lease
            region = self._open.get(opened.region.region)
            if region is not None:
                if opened.writable or isinstance(region._opening, control.OpenRegion):
                    region._opening = opening
                if not given_up:
                    region._handles += 1
                    counted.append(region)
            arrived(opened)

        def discount() -> None:
            for region in counted:
                region._handles -= 1

        try:
            opened = self._ask(request, leasing.LeaseOpened, mapped, lambda _: undo)
            return self._found(opened), opened
        except BaseException:
            given_up = True
            with contextlib.suppress(NodeLostError):
                self._session.in_turn(discount)
            raise

    def give_up(self, number: int, closed: Callable[[], object]) -> None:
        """A handle of a lease is used no more; with the last one its region is closed here, soon, and may
        be opened again.
        """

        def discount() -> None:
            region = self._open.get(number)
            if region is None:
                return
            region._handles -= 1
            if region._handles == 0:
                self.leave(number)
                closed()

        self._session.in_turn(discount)

    def make_unfilled(self, request: leasing.CreateLease) -> Region:
        """Make the region of a lease that nobody can open yet."""
        return self._found(
            self._ask(
                request,
                leasing.LeaseOpened,
                self._arrived,
                lambda opened: control.DestroyRegion(opened.region.region),
            )
        )

    def leave(self, number: int) -> None:
        """Close a region in this process, which may open it again; nobody else opens it meanwhile."""
        self.drop(number)
        self._session.post(control.CloseRegion(number))

    def _undo_create(self, opened: control.Opened) -> control.DestroyRegion | None:
        return control.DestroyRegion(opened.region.region) if opened.created else None

    def _found(self, opened: control.Opened | leasing.LeaseOpened) -> Region:
        region = self._open.get(opened.region.region)
        if region is None:
            over = lease_over(opened.region.region)
            if over is not None:
                raise over
            raise ClosedError(f"{label(opened.region.region)} was destroyed while it was opened; try again")
        return region

    def _arrived(self, opened: control.Opened | leasing.LeaseOpened, received: Descriptors) -> None:
        """Map a region, in the order of the manager's answers: only the first has descriptors."""
        described = opened.region
        if described.region in self._open:
            if received:
                raise InternalError(f"the manager gave a second applied table for {label(described.region)}")
            return
        first = bool(received) or received.cut
        if not first and described.region in _closed:
            raise _CrossedError
        _names[described.region] = described.options.name
        _closed.pop(described.region, None)
        _leases.pop(described.region, None)  # of another cluster, whose numbers were the same
        try:
            map_region(described, received)
        except BaseException:
            if first:  # those who asked meanwhile get answers that cross this word
                _note_closed(described.region)
                self._session.post(control.CloseRegion(described.region))
            raise
        self._open[described.region] = Region(self._node, described)

    def destroy(self, number: int) -> None:
        """End a region everywhere."""
        self._session.call(
            control.DestroyRegion(number), control.Done, arrived=lambda done, received: self.drop(number)
        )

    def destroy_named(self, name: str) -> None:
        """End the region of that name everywhere."""
        known = [number for number, region in list(self._open.items()) if region.name == name]

        def ended(done: control.Done, received: Descriptors) -> None:
            for number in known:
                self.drop(number)

        self._session.call(control.DestroyRegion(name), control.Done, arrived=ended)

    def drop(self, number: int) -> None:
        """Close a region that has ended, in this process."""
        if number in self._open:
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile, and another lies there already
                _native.region_close(number)
            _note_closed(number)  # before the table does not know it any more: see `_arrived`
            self._open.pop(number, None)

    def remap(self, session: Session) -> None:
        """In a child of fork, attached anew: map every region where the parent had it."""
        self._session = session
        for number, region in list(self._open.items()):
            try:
                opened, received = _open_again(session, region._opening)
                map_region(opened.region, received)
            except (ClosedError, UsageError):  # destroyed meanwhile: its old arrays raise ClosedError
                del self._open[number]
                _native.region_close(number)
                _note_closed(number)
            else:
                region._described = opened.region

    def clear(self) -> None:
        """Forget every region: the shim has closed them."""
        for number in list(self._open):
            _leases.pop(number, None)  # it has not ended
            _note_closed(number)
        self._open.clear()


def _open_again(
    session: Session, request: control.OpenRegion | leasing.OpenLease
) -> tuple[control.Opened | leasing.LeaseOpened, Descriptors]:
    if isinstance(request, leasing.OpenLease):
        return session.call(request, leasing.LeaseOpened)
    return session.call(request, control.Opened)


def _who_is_there(described: types.Region) -> str:
    """Say what stands in the way of a region in this process: not its closed regions, which give way."""
    first, end = described.address, described.address + described.size
    try:
        for low, high, name in proc.mappings():
            at = max(low, first)  # memory without a name may be joined with a closed region in front of it
            while at < min(high, end) and (behind := _native.region_closed_end(at)):
                at = behind
            if at < min(high, end):
                ours = _native.region_find(at)
                if ours is not None:
                    return f"{label(ours[0])}, which is open, at {at:#x}"
                begins = low if at == max(low, first) else at
                return f"{name or 'memory without a name'} at {begins:#x} to {high:#x}"
    except (OSError, ValueError):
        pass
    return "somebody else"


def map_region(described: types.Region, received: Descriptors) -> None:
    """Map a region at its address and close the descriptors."""
    frames, wanted, applied = descriptors = received.take(3)
    shift = described.options.page_size.bit_length() - 1
    try:
        _native.region_map(
            described.region, described.address, described.pages, shift,
            frames_fd=frames, wanted_fd=wanted, applied_fd=applied,
            lease_guard_ns=described.options.max_staleness_ns // LEASE_GUARD_PART,
        )  # fmt: skip
    except OSError as error:
        where = f"{label(described.region)}, {described.size} bytes at {described.address:#x}"
        if error.errno == errno.EEXIST:
            raise AddressRangeError(
                f"the addresses of {where}, are in use in this process by {_who_is_there(described)}; "
                "attach before loading what maps memory there, or start the first node with DSM_ADDRESS_LOW "
                "and DSM_ADDRESS_HIGH set to another range"
            ) from None
        if error.errno == errno.ESRCH:
            raise ClosedError(f"{where}, cannot be mapped: this process has closed its node") from None
        if error.errno == errno.ENOMEM:
            needed = 2 * (described.size + described.pages)
            raise LimitError(f"{where}, cannot be mapped: {lacking.memory(needed)}") from None
        if os.fstat(frames).st_size < described.size:  # the manager is giving its memory back
            raise ClosedError(f"{where}, was destroyed while it was opened; try again") from None
        raise InternalError(f"{where}, cannot be mapped: {error}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
