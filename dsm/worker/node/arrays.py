"""A node's arrays and regions: by name, or without one.

Owns the checks of what callers pass, and their defaults.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from dsm.errors import UsageError
from dsm.wire import control
from dsm.worker import awaited, layouts, ranges
from dsm.worker.node.pages import Pages
from dsm.worker.regions import Region


class Arrays(Pages):
    """The part of `Node` that makes and finds arrays."""

    def array(
        self, name: str | None, shape: layouts.ShapeLike, dtype: npt.DTypeLike = "f8", *,
        consistency: str = "sequential", page_size: int = 4096, home: str | int = "first-touch",
        fill: Any = 0, order: str = "C", max_staleness: float | None = None,
    ) -> np.ndarray[Any, Any]:  # fmt: skip
        """Create an array, or open the one of that name: every worker gets the same memory.

        Parameters
        ----------
        name
            1 to 255 bytes, the same in every worker; None for an anonymous array, which lives until it
            is destroyed or its cluster ends (pass it on with `dsm.ref`).
        shape
            An integer or a tuple of integers; ``()`` and zero sizes work.
        dtype
            Any dtype of fixed size without Python objects.
        consistency
            ``"sequential"``: what is right on one machine's threads is right here.  ``"release"``: what is
            ordered by dsm's locks, barriers and the like gives the same result, and several nodes may
            write one page at a time in between.  ``"bounded"``: what is read may be old by
            `max_staleness`, and whoever writes is never held up by readers.
        page_size
            Bytes of the unit that moves between nodes: 4096 · 2^k, at most 2 MiB.  Large pages suit large
            sequential data, small pages suit what several nodes write.
        home
            Which node keeps a page (under ``"release"``, where homes follow the work, at first) or its
            directory entry: ``"first-touch"``, ``"block"``, ``"cyclic"`` or a node's number.
        fill
            First value of every item, anything that casts to `dtype` without loss; 0 is zero bytes in
            every dtype, as in `numpy.zeros`.
        order
            ``"C"`` or ``"F"``.
        max_staleness
            Of ``"bounded"``, and required there: seconds by which a value that is read may be old, 0.005 to
            3600.

        Returns
        -------
        numpy.ndarray
            A plain, writable array.

        Raises
        ------
        UsageError
            When an argument is wrong, or the existing array has another shape, dtype or option; the
            message names both.
        LimitError, AddressRangeError
            When there is no room for it in the cluster or in this process.

        Examples
        --------
        >>> a = node.array("grid", (4096, 4096), "f8")  # doctest: +SKIP
        """
        options = layouts.array_options(
            name,
            shape,
            dtype,
            consistency=consistency,
            page_size=page_size,
            home=home,
            fill=fill,
            order=order,
            max_staleness=max_staleness,
        )
        region, _ = self._regions.create(options)
        return region._whole()

    def from_array(
        self, name: str | None, array: npt.ArrayLike, *, consistency: str = "sequential",
        page_size: int = 4096, home: str | int = "first-touch", max_staleness: float | None = None,
    ) -> np.ndarray[Any, Any]:  # fmt: skip
        """Create an array with the contents of another one, or open the one of that name.

        The contents of the first worker win: others wait until it has copied, and get its array; theirs
        must have the same shape and dtype.  If it dies while it copies, the name is free again.

        Parameters
        ----------
        name, consistency, page_size, home, max_staleness
            As in `array`.
        array
            What `numpy.asarray` understands; its shape, dtype and order are kept.

        Returns
        -------
        numpy.ndarray
            A plain, writable array in shared memory.

        Raises
        ------
        UsageError
            As in `array`.
        """
        source = np.asarray(array)
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
        options = layouts.array_options(
            name, source.shape, source.dtype, consistency=consistency, page_size=page_size, home=home, fill=0,
            order=order, max_staleness=max_staleness,
        )  # fmt: skip
        region, created = self._regions.create(options, ready=False)
        target = region._whole()
        if created:
            try:
                if region._described.pages > 1:
                    self.prefetch(target, write=True)
                target[...] = source
                self._connection.session.call(control.RegionReady(region.number), control.Done)
            except BaseException:
                self.destroy(region)
                raise
        return target

    def open(self, name: str) -> np.ndarray[Any, Any]:
        """Return the existing array of that name.

        Raises
        ------
        UnknownNameError
            When there is none.
        UsageError
            When it is a region without an array; see `region`.
        """
        if layouts.check_name(name, "the array") is None:
            raise UsageError("an anonymous array has no name to open it by; send dsm.ref(array)")
        return self._regions.open(name)._whole()

    def region(
        self, name: str | None, nbytes: SupportsIndex | None = None, *, consistency: str = "sequential",
        page_size: int = 4096, home: str | int = "first-touch", fill: int | bytes = 0,
        max_staleness: float | None = None,
    ) -> Region:  # fmt: skip
        """Create a region of raw memory, or open the one of that name.

        Parameters
        ----------
        name, consistency, page_size, home, max_staleness
            As in `array`.
        nbytes
            Its size; None opens an existing region, also that of an array.
        fill
            A byte's value, or bytes that are repeated from the start.

        Returns
        -------
        Region
            With `address`, `size`, `buffer`, `array` and `destroy`.

        Raises
        ------
        UsageError
            When an argument is wrong or the existing region has other options.
        UnknownNameError
            When `nbytes` is None and there is no region of that name.
        """
        layouts.check_name(name, "the region")
        if nbytes is None:
            if name is None:
                raise UsageError("an anonymous region needs a size; pass nbytes")
            return self._regions.open(name)
        options = layouts.region_options(
            name, nbytes, consistency=consistency, page_size=page_size, home=home, fill=fill,
            max_staleness=max_staleness,
        )  # fmt: skip
        return self._regions.create(options)[0]

    @awaited.elsewhere
    def destroy(self, what: str | np.ndarray[Any, Any] | Region) -> None:
        """End an array or region for every worker of the cluster.

        Its name can be used again.  Touching its old memory raises `ClosedError`, in every worker.

        Parameters
        ----------
        what
            A name, an array (or a view of one), or a `Region`.

        Raises
        ------
        UnknownNameError
            When there is no region of that name.
        UsageError
            When the array does not lie in an open region.
        """
        if isinstance(what, str):
            self._regions.destroy_named(what)
        elif isinstance(what, Region):
            what._check_open()
            self._regions.destroy(what.number)
        else:
            found = ranges.region_of(what, self._regions) if isinstance(what, np.ndarray) else None
            if found is None:
                raise UsageError(
                    f"destroy() was given a {type(what).__name__} that does not lie in an open dsm region; "
                    "pass a name, an array of node.array(), or a Region"
                )
            self._regions.destroy(found[0].number)

    def arrays(self) -> dict[str, layouts.ArrayInfo]:
        """Return the named arrays of the cluster, by name."""
        regions = [region for region in self._regions.listed() if region.options.layout is not None]
        return {region.options.name: layouts.describe(region) for region in regions if region.options.name}
