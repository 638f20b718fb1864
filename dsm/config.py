"""Settings that come from the environment, and nothing else.

Owns the names of the variables that change how the runtime behaves, and what is refused.  Variables that
say where a process belongs (DSM_NODE, DSM_RANK, DSM_SECRET, …) are read by the floor that obeys them.

===================================  =====================================================================
``DSM_ADDRESS_LOW``, ``…_HIGH``      range of addresses for regions (hexadecimal); the coordinator's count
``DSM_PAGE_TIMEOUT``                 seconds that a thread waits for a page; 0: without end
``DSM_LEASE_BYTES``                  what all mapped leases of a cluster may have together; the coordinator's
                                     counts
``DSM_LOG``                          level, or level:file, of the log of managers and launchers
===================================  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dsm.errors import UsageError
from dsm.limits import ADDRESS_ALIGNMENT, ADDRESS_HIGH, ADDRESS_LOW, PAGE_TIMEOUT_S
from dsm.units import bytes_of


def address_range(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the first address for regions, and the first one after them.

    Raises
    ------
    UsageError
        A variable is not a multiple of 2 MiB, or the range is empty.
    """
    low = _address(environ, "DSM_ADDRESS_LOW", ADDRESS_LOW)
    high = _address(environ, "DSM_ADDRESS_HIGH", ADDRESS_HIGH)
    if low >= high:
        raise UsageError(
            f"the range of addresses {low:#x} to {high:#x} is empty; unset DSM_ADDRESS_LOW and _HIGH"
        )
    return low, high


def page_timeout(environ: Mapping[str, str]) -> float:
    """Return the seconds that a thread waits for a page; 0 when it waits without end.

    Raises
    ------
    UsageError
        DSM_PAGE_TIMEOUT is not a number of seconds.
    """
    text = environ.get("DSM_PAGE_TIMEOUT")
    if not text:
        return PAGE_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise UsageError(f"DSM_PAGE_TIMEOUT is {text!r}; it must be seconds, or 0 to wait without end")
    return 0.0 if seconds == math.inf else seconds


def lease_bytes(environ: Mapping[str, str]) -> int | None:
    """Return the bytes that all mapped leases may have together; None without a bound.

    Raises
    ------
    UsageError
        DSM_LEASE_BYTES is no size.
    """
    text = environ.get("DSM_LEASE_BYTES")
    return bytes_of(text, "DSM_LEASE_BYTES") if text else None


#: What DSM_LOG may say, and the number that `logging` has for it.
LOG_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def log_options(environ: Mapping[str, str]) -> tuple[int, str]:
    """Return the level of the log, and its file; empty for standard error.

    Raises
    ------
    UsageError
        The level is none, or the file is not an absolute path with at most the placeholder ``{pid}``.
    """
    text = environ.get("DSM_LOG", "")
    name, colon, path = text.partition(":")
    level = LOG_LEVELS.get(name.strip().lower()) if text else LOG_LEVELS["warning"]
    if level is None:
        raise UsageError(
            f"DSM_LOG is {text!r}; it must be one of {', '.join(LOG_LEVELS)}, "
            "or such a level, a colon and the path of a file"
        )
    if colon and not path.startswith("/"):
        raise UsageError(
            f"DSM_LOG is {text!r}; behind the colon belongs an absolute path, as in info:/tmp/dsm.log"
        )
    if set("{}") & set(path.replace("{pid}", "")):
        raise UsageError(f"DSM_LOG is {text!r}; the only placeholder that a path may have is {{pid}}")
    return level, path


def _address(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if value <= 0 or value % ADDRESS_ALIGNMENT or value >= 1 << 47:
        raise UsageError(
            f"{name} is {text!r}; "
            f"it must be a hexadecimal multiple of {ADDRESS_ALIGNMENT:#x} below {1 << 47:#x}"
        )
    return value
