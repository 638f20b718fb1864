"""What a program may say and ask about the pages of its arrays.

Owns the checks of what callers pass.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from dsm import limits
from dsm.errors import UsageError
from dsm.wire import control
from dsm.worker import pagetable, ranges
from dsm.worker.node.objects import Objects
from dsm.worker.regions import Region


class Pages(Objects):
    """The part of `Node` that brings, holds, moves and describes pages."""

    def prefetch(self, array: np.ndarray[Any, Any] | Region, write: bool = False) -> None:
        """Bring the pages of an array here in bulk; returns when they are here.

        Parameters
        ----------
        array
            An array of a region, a view (all pages between its lowest and highest byte), or a `Region`.
        write
            For writing: no other node keeps them.
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is not None:
            ranges.check_fits(pages, self._page_size(pages), "prefetching")
            ranges.prefetch(pages, bool(write))

    def home_of(self, array: np.ndarray[Any, Any] | Region) -> np.ndarray[Any, Any]:
        """Return which node is the home of each page of an array.

        Parameters
        ----------
        array
            As in `prefetch`: all pages between its lowest and highest byte.

        Returns
        -------
        numpy.ndarray
            Node numbers, int16, one for each page; -1 where nobody has touched the page yet, or its home
            does not answer.

        Examples
        --------
        >>> np.bincount(node.home_of(a))  # pages at home on each node  # doctest: +SKIP
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is None:
            return np.empty(0, np.int16)
        table = self.page_table(array)
        homes = np.full(pages.pages, -1, np.int16)
        own = table[table["home"] == table["node"]]
        homes[own["page"] - pages.page] = own["node"]
        return homes

    def rehome(self, array: np.ndarray[Any, Any] | Region) -> int:
        """Make this node the home of the pages of an array, so that writing them here needs no diffs.

        It is about speed alone: homes follow the work by themselves after a few releases.  Releases
        first, as `release` does.

        Parameters
        ----------
        array
            As in `prefetch`; of a region with ``consistency="release"``.

        Returns
        -------
        int
            Of how many of the pages this node is the home now: not of those that another worker of this
            node was writing meanwhile, nor of those that went away with a node.

        Raises
        ------
        UsageError
            When the region has another consistency: there pages have no home that could move.
        PageTimeoutError
            When a home does not answer in time; homes may have moved in part.
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is None:
            return 0
        region = self._regions.get(pages.region)
        if region is not None and region.options.consistency != "release":
            raise UsageError(
                f'homes move in regions with consistency="release"; {region.name or "this one"} has '
                f'"{region.options.consistency}"'
            )
        self.release()
        return ranges.rehome(pages)

    def pin(self, array: np.ndarray[Any, Any] | Region, write: bool = True) -> ranges.Pin:
        """Return a context manager that brings the pages of an array here and holds them.

        System calls do not fetch absent pages: ``f.readinto(a)``, ``sock.recv_into(a)``, ``a.tofile(f)``
        and `numpy.save` end with an error (EFAULT) or a short count on them.  Inside ``with node.pin(a):``
        they work.  Other nodes that need the pages wait meanwhile: hold them briefly.  Under
        ``consistency="release"`` the thread that holds a pin can release a lock, but not acquire one, nor
        wait at a barrier.

        Parameters
        ----------
        array
            As in `prefetch`.
        write
            Whether the pages may be written; False lets other nodes go on reading.

        Returns
        -------
        Pin
            The ``with`` statement gives `array`.
        """
        pages = ranges.pages_of(array, self._regions)
        if pages is not None:
            ranges.check_fits(pages, self._page_size(pages), "pinning")
        region = None if pages is None else self._regions.get(pages.region)
        keeps_old = region is not None and region.options.consistency == "release"
        return ranges.Pin(self._pins, array, pages, bool(write), keeps_old)

    def _page_size(self, pages: ranges.PageRange) -> int:
        region = self._regions.get(pages.region)
        return limits.OS_PAGE_BYTES if region is None else region.page_size

    def page_table(
        self, array: np.ndarray[Any, Any] | Region, nodes: str | int = "all"
    ) -> np.ndarray[Any, Any]:
        """Return what the nodes know of the pages of an array, a row for each page and node.

        Nothing is fetched and nobody waits for anybody: it is a picture, not of one moment.  A node that
        does not answer within 1.5 s is left out, with a `RuntimeWarning`.

        Parameters
        ----------
        array
            As in `prefetch`: all pages between its lowest and highest byte.
        nodes
            ``"all"``, ``"here"`` (this node) or the number of a live node.

        Returns
        -------
        numpy.ndarray
            Structured, by page and then by node:

            ``node``, ``page``, ``address``, ``size``
                The node that says this; number of the page in its region, its address and bytes.
            ``home``
                Node that decides about the page.
            ``owner``
                Node with the writable copy, or that had it last; -1: none yet, or the home was not
                asked; -2: it went away with a node.
            ``permissions``
                What workers of the node may do without a fault: ``"---"``, ``"r--"`` or ``"rw-"``.
            ``model``, ``state``
                Consistency of the region, and the state of the page on the node (ARCHITECTURE.md).
            ``faults_read``, ``faults_write``
                Faults of the node's workers that its manager was asked about.
            ``dirty``
                Whether the node may have written what no other node has.
            ``version``
                How often the contents, or the right to write them, came to the node or were merged there
                or from there.
            ``copyset``
                How many nodes have, or may have, a copy; -1 when the home was not asked.
            ``lease``
                Seconds for which the node may still read its copy without asking; NaN where there is none.

        Raises
        ------
        UsageError
            When it is no array of an open region, or `nodes` is wrong.
        ClosedError
            When the region is destroyed meanwhile.
        LimitError
            When the table is larger than this machine's memory.

        Examples
        --------
        >>> table = node.page_table(a)  # doctest: +SKIP
        >>> table[table["version"] > 100]["page"]  # doctest: +SKIP
        """
        pages = ranges.pages_of(array, self._regions)
        asked = pagetable.chosen(nodes, self.node_id, self.nodes)
        if pages is None:
            return np.empty(0, pagetable.COLUMNS)
        ranges.check_table(pages, len(asked))
        table, silent = pagetable.gather(self._ask_pages, *pages, asked)
        if silent:
            numbers = ", ".join(str(each.node) for each in silent)
            warnings.warn(
                f"the page table lacks rows of node {numbers}, which did not answer: stopped, or cut off "
                "(see `dsm status`)",
                RuntimeWarning,
                stacklevel=2,
            )
        return table

    def _ask_pages(self, question: control.GetPages) -> tuple[control.Pages, int]:
        answer, received = self._connection.session.call(question, control.Pages)
        return answer, received.take(1)[0]
