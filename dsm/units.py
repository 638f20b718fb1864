"""Sizes and durations as people write them: ``2G``, ``64K``, ``60s``, ``1.5m``.

Owns the translation to bytes and milliseconds, and back.  Pure.
"""

from __future__ import annotations

import math
import operator
import re

from dsm.errors import TooLargeError, UsageError

_SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATIONS_MS = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "h": 3_600_000}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")
#: Characters of a size or duration, and bytes of a size, beyond which nobody means it.
_MAX_TEXT = 40
_MAX_BYTES = 2**63 - 1
_WIRE_BITS = 64
#: No duration is longer (30 years), so that no arithmetic with times ends.
MAX_DURATION_MS = 10**12


def bytes_of(size: int | str, what: str = "size") -> int:
    """Return a size in bytes.

    Parameters
    ----------
    size
        Bytes, or text with a unit of 1024: ``"64K"``, ``"2G"``, ``"1.5M"`` (also ``"64KiB"``, ``"2GB"``).
    what
        Its name, for messages.

    Raises
    ------
    UsageError
        It is neither, negative, or no whole number of bytes.
    TooLargeError
        It is a number that is no size on any wire.
    """
    if isinstance(size, str):
        match = _NUMBER.fullmatch(size[:_MAX_TEXT])
        unit = match[2].upper() if match else "?"
        unit = unit if unit == "B" else unit.removesuffix("IB").removesuffix("B")
        if match is None or unit not in _SIZES or len(size) > _MAX_TEXT:
            raise UsageError(
                f"{what} is {_shown(size)}; write bytes, or a number with K, M, G or T, as in 64K"
            )
        value = float(match[1]) * _SIZES[unit] if "." in match[1] else int(match[1]) * _SIZES[unit]
        if value != int(value) or value > _MAX_BYTES:
            raise UsageError(f"{what} is {size!r}, which is no whole number of bytes up to {_MAX_BYTES}")
        return int(value)
    try:
        if isinstance(size, bool):
            raise TypeError
        value = operator.index(size)
    except TypeError:  # also of an array of several numbers
        raise UsageError(
            f"{what} is {repr(size)[:_MAX_TEXT]}; pass bytes as an integer, or text as in '64K'"
        ) from None
    bits = value.bit_length()
    if value < 0 or bits > _WIRE_BITS:
        shown = value if bits <= _WIRE_BITS else f"a number of {bits} bits"
        if value < 0:
            raise UsageError(f"{what} is {shown}; it cannot be negative")
        raise TooLargeError(f"{what} is {shown}; no memory has so many bytes")
    return value


def milliseconds_of(duration: float | str, what: str = "duration") -> int:
    """Return a duration in whole milliseconds, at least 1.

    Parameters
    ----------
    duration
        Seconds, or text with a unit: ``"250ms"``, ``"60s"``, ``"5m"``, ``"1h"``.
    what
        Its name, for messages.

    Raises
    ------
    UsageError
        It is neither, not positive, or longer than `MAX_DURATION_MS`.
    """
    if isinstance(duration, str):
        match = _NUMBER.fullmatch(duration[:_MAX_TEXT])
        if match is None or match[2] not in _DURATIONS_MS or len(duration) > _MAX_TEXT:
            raise UsageError(f"{what} is {_shown(duration)}; write a number with ms, s, m or h, as in 60s")
        value = float(match[1]) * _DURATIONS_MS[match[2]]
    else:
        try:
            value = math.nan if isinstance(duration, bool) else float(duration) * 1000
        except (TypeError, ValueError, OverflowError):
            value = math.nan
    if not 0 < value <= MAX_DURATION_MS:
        raise UsageError(
            f"{what} is {duration!r}; pass seconds above 0, or text as in '60s', at most {MAX_DURATION_MS} ms"
        )
    return max(1, round(value))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…")


def show_bytes(size: float) -> str:
    """Return a size as people read it: ``64 KiB``, ``1.5 GiB``, ``17 B``."""
    for unit, one in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(size) >= one:
            return f"{size / one:.4g} {unit}"
    return f"{size:g} B"


def show_milliseconds(duration: float) -> str:
    """Return a duration as people read it: ``250 ms``, ``59.9 s``, ``5.0 m``."""
    for unit, one in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if abs(duration) >= one:
            return f"{duration / one:.1f} {unit}"
    return f"{duration:.0f} ms"
