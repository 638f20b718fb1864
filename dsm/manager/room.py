"""Whether this machine and this process have room for another region, and what to say when they have not.

Owns what a page costs the manager besides its frame.
"""

from __future__ import annotations

import errno
import os
import resource

from dsm import proc
from dsm.errors import LimitError
from dsm.types import Region

#: Bytes of the manager's tables for each page: state, owner, copyset, three counts, wanted level; under
#: `release` besides home, streak, five marks of who had, used and wrote it, and what the shim notes of its
#: twin and its frame; under `bounded` ends of leases, here and where workers see them.
_PAGE_ENTRY_BYTES = {"sequential": 14, "release": 23, "bounded": 30}
#: Page tables that are made without looking how much memory there is.
_SMALL_BYTES = 16 * 1024 * 1024


def _available_bytes() -> int:
    """Return what the system says that it can still give."""
    return proc.memory()["MemAvailable"]


def _table_bytes(region: Region) -> int:
    return _PAGE_ENTRY_BYTES[region.options.consistency] * region.pages


def check(region: Region, node: int) -> None:
    """Refuse a region whose page tables the machine of this node cannot hold: `LimitError`."""
    tables = _table_bytes(region)
    if tables <= _SMALL_BYTES:
        return
    available = _available_bytes()
    if tables > available:
        raise LimitError(
            f"a region of {region.size} bytes in pages of {region.options.page_size} needs {tables} "
            f"bytes for its page tables on every node; on the machine of node {node} "
            f"MemAvailable is {available}: choose a larger page_size, or make it smaller"
        )


def refusal(region: Region, node: int, kept: int, error: OSError | MemoryError) -> str:
    """Say why this node, which keeps so many regions, cannot keep another one, and what to change."""
    what = f"node {node} cannot keep another region of {region.size} bytes (it keeps {kept})"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"{what}: {error.strerror}; each region takes three descriptors of the manager, which may "
            f"have {limit}: destroy regions, or start it under a higher `ulimit -n`"
        )
    reason = os.strerror(errno.ENOMEM) if isinstance(error, MemoryError) else error.strerror
    tables = _table_bytes(region)
    bounds = [resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    shown = ["unlimited" if bound == resource.RLIM_INFINITY else f"{bound} bytes" for bound in bounds]
    return (
        f"{what}: {reason}; its manager needs {region.size + tables} bytes of addresses for it, of them "
        f"{tables} for the page tables, and has RLIMIT_AS {shown[0]}, "
        f"RLIMIT_DATA {shown[1]}: make the region smaller, choose a larger page_size, or start the "
        "manager under a higher `ulimit -v` or `-d`"
    )
