"""A node's heaps: memory in blocks of any size, without a name for each.

Owns the checks of what callers pass, and where what they do not pass comes from (`dsm.properties`).
"""

from __future__ import annotations

import os

from dsm.errors import UsageError
from dsm.properties import heap_options
from dsm.worker import layouts
from dsm.worker.heap import Heap
from dsm.worker.node.parts import Part


class Memory(Part):
    """The part of `Node` that makes and finds heaps."""

    def heap(
        self, name: str, *, kind: str | None = None, manager: str | None = None,
        min_system_alloc: int | str | None = None, max_bytes: int | str | None = None,
        page_size: int | str | None = None, consistency: str | None = None, debug: bool | None = None,
    ) -> Heap:  # fmt: skip
        """Create a heap, or open the one of that name: every worker of the cluster gets the same.

        What is not given comes from the environment, from the file that DSM_CONFIG names, or is the default
        (docs/memory.md has the table of these properties); of a heap that exists, from that heap.

        Parameters
        ----------
        name
            1 to 255 bytes.
        kind
            ``"lazy"``: memory is got when it is used.  ``"eager"``: it is there at once, belongs to this
            node and is locked in memory if the system permits.
        manager
            ``"pooled"``: blocks are cut from extents, small ones by way of a cache in this worker.
            ``"direct"``: each block has pages of its own.  Default: eager heaps are pooled, lazy ones
            direct.
        min_system_alloc
            Bytes of the extents by which a pool grows.
        max_bytes
            That all its memory, on all nodes, may have; 0: without bound.
        page_size
            As in `array`.
        consistency
            ``"sequential"`` or ``"release"``, as in `array`.
        debug
            Guards around each block, which `free` and `Heap.check` look at; the error names the line of the
            program that allocated it.

        Returns
        -------
        Heap
            With `alloc`, `free`, `realloc`, `array`, `statistics`, `check`, `trim` and `destroy`.

        Raises
        ------
        UsageError
            An argument or a property is wrong, or the existing heap has another option; the message names
            both.
        """
        if layouts.check_name(name, "the heap") is None:
            raise UsageError("a heap needs a name, by which other workers find it")
        given = {
            "kind": kind, "manager": manager, "min_system_alloc": min_system_alloc, "max_bytes": max_bytes,
            "page_size": page_size, "consistency": consistency, "debug": debug,
        }  # fmt: skip
        return self._heaps.open(*heap_options(name, given, os.environ))
