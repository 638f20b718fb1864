"""How a numpy array is described to the cluster: dtype, shape, order and fill as plain values.

Owns the translation between what a user passes (anything numpy accepts as a dtype, any fill that can
be cast) and `dsm.types.RegionOptions`, and the comparison of two descriptions.  Pure: it knows
neither memory nor manager.

A dtype travels as JSON: its ``dtype.str`` when that says everything, otherwise (structured dtypes)
numpy's dictionary form, which keeps offsets, padding, titles and alignment.  A fill travels as the
bytes of one item; bytes that are all zero travel as none, so that equal fills are equal bytes
(``nan`` is equal to itself).
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import msgspec
import numpy as np
import numpy.typing as npt

from dsm import limits
from dsm.errors import LimitError, UsageError
from dsm.types import CONSISTENCIES, MAX_DIMENSIONS, PLACEMENTS, ArrayLayout, Region, RegionOptions

#: Characters of a value that a message shows.
_SHOWN = 120
#: Bytes that numpy can count, whatever they are.
_NUMPY_MAX_BYTES = 2**63 - 1

ShapeLike = SupportsIndex | Sequence[SupportsIndex]


@dataclass(frozen=True)
class ArrayInfo:
    """What `Node.arrays` says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    nbytes: int
    consistency: str
    page_size: int
    home: str | int
    region: int


def describe(region: Region) -> ArrayInfo:
    """Return the description of the array that `region` was created for."""
    options, layout = region.options, region.options.layout
    assert layout is not None
    return ArrayInfo(
        tuple(layout.shape),
        decode_dtype(layout.dtype),
        layout.order,
        options.nbytes,
        options.consistency,
        options.page_size,
        options.home,
        region.region,
    )


def encode_dtype(dtype: np.dtype[Any]) -> str:
    """Return `dtype` as JSON; `UsageError` when it cannot be said."""
    text = json.dumps(_describe(dtype), separators=(",", ":"))
    if decode_dtype(text) != dtype:
        raise UsageError(
            f"dtype {dtype!r} cannot be described to other processes; use a plain or structured dtype"
        )
    return text


def decode_dtype(text: str) -> np.dtype[Any]:
    """Return the dtype that `encode_dtype` wrote as `text`."""
    return _undescribe(json.loads(text))


def _describe(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(base), list(shape)]
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    titles = [field[2] if len(field) > 2 else None for field in fields]
    described: dict[str, Any] = {
        "names": list(dtype.names),
        "formats": [_describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }
    if any(title is not None for title in titles):
        described["titles"] = titles
    return described


def _undescribe(described: Any) -> np.dtype[Any]:
    if isinstance(described, str):
        return np.dtype(described)
    if isinstance(described, list):
        return np.dtype((_undescribe(described[0]), tuple(described[1])))
    fields: Any = dict(described, formats=[_undescribe(part) for part in described["formats"]])
    aligned = fields.pop("aligned")
    found: np.dtype[Any] = np.dtype(fields, align=aligned)
    return found


def shown(value: object) -> str:
    """Return `value` for a message, on one line and cut when it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def number(value: Any, what: str, advice: str) -> int:
    """Return `value` as an int; `UsageError` when it is none (an array of one number is none)."""
    try:
        if isinstance(value, (bool, np.ndarray)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{what} is {shown(value)}, of type {type(value).__name__}; {advice}") from None


def check_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return `dtype` as numpy's; `UsageError` when it is none or contains objects."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise UsageError(f"dtype {dtype!r} is not understood by numpy: {error}") from None
    if found.hasobject:
        raise UsageError(
            f"dtype {found!r} contains Python objects, which live in one process only; "
            "use a dtype of fixed size (for text 'S20' or 'U20')"
        )
    return found


def check_shape(shape: ShapeLike) -> tuple[int, ...]:
    """Return `shape` as a tuple of integers that are not negative."""
    try:
        sizes = (
            (operator.index(shape),)
            if isinstance(shape, SupportsIndex)
            else tuple(map(operator.index, shape))
        )
    except TypeError:
        raise UsageError(f"shape {shown(shape)} is neither an integer nor a tuple of integers") from None
    if any(size < 0 for size in sizes):
        raise UsageError(f"shape {shown(sizes)} has a negative size; sizes are 0 or more")
    if len(sizes) > MAX_DIMENSIONS:
        raise UsageError(
            f"shape {shown(sizes)} has {len(sizes)} dimensions; numpy has at most {MAX_DIMENSIONS}"
        )
    return sizes


def check_name(name: str | None, what: str) -> str | None:
    """Return `name` when it can name something; `None` stays `None`."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise UsageError(f"name of {what} is {shown(name)}, of type {type(name).__name__}; pass a string")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError(f"name of {what} {shown(name)} is not valid Unicode; leave surrogates out") from None
    if not 0 < size <= limits.MAX_NAME_BYTES or "\0" in name:
        raise UsageError(
            f"name of {what} {shown(name)} has {size} bytes; "
            f"names have 1 to {limits.MAX_NAME_BYTES} bytes and no NUL"
        )
    return name


def check_options(page_size: int, consistency: str, home: str | int, nbytes: int) -> None:
    """Refuse options that no region can have, naming the value and what is accepted."""
    page_size = number(page_size, "page_size", "pass an integer number of bytes")
    if not limits.OS_PAGE_BYTES <= page_size <= limits.MAX_PAGE_BYTES or page_size & (page_size - 1):
        raise UsageError(
            f"page_size is {page_size}; it must be a power of two from {limits.OS_PAGE_BYTES} "
            f"to {limits.MAX_PAGE_BYTES}"
        )
    if not isinstance(consistency, str) or consistency not in CONSISTENCIES:
        raise UsageError(f"consistency is {shown(consistency)}; this version has {', '.join(CONSISTENCIES)}")
    if isinstance(home, str):
        if home not in PLACEMENTS:
            raise UsageError(
                f"home is {shown(home)}; it is one of {', '.join(PLACEMENTS)} or a node's number"
            )
    elif isinstance(home, bool) or not isinstance(home, int) or not 0 <= home < limits.MAX_NODES:
        raise UsageError(f"home is {shown(home)}; it is one of {', '.join(PLACEMENTS)} or a node's number")
    if nbytes > limits.MAX_REGION_BYTES:
        raise LimitError(
            f"the region would have {nbytes} bytes; the most is {limits.MAX_REGION_BYTES}; "
            "divide it into several"
        )


def check_staleness(consistency: str, max_staleness: float | None) -> int:
    """Return `max_staleness` in nanoseconds, 0 for models that have none; refuse what cannot be kept."""
    if consistency != "bounded":
        if max_staleness is not None:
            raise UsageError(
                f"max_staleness is {shown(max_staleness)} with consistency={consistency!r}; "
                "only consistency='bounded' has one: leave it out"
            )
        return 0
    low, high = limits.MIN_STALENESS_NS / 1e9, limits.MAX_STALENESS_NS / 1e9
    advice = f"with consistency='bounded' pass seconds from {low:g} to {high:g}"
    if max_staleness is None:
        raise UsageError(f"max_staleness is missing; {advice}")
    try:
        seconds = float(max_staleness)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"max_staleness is {shown(max_staleness)}; {advice}") from None
    if isinstance(max_staleness, (bool, str, bytes)) or not low <= seconds <= high:
        raise UsageError(f"max_staleness is {shown(max_staleness)}; {advice}")
    return round(seconds * 1e9)


def encode_fill(fill: Any, dtype: np.dtype[Any], order: str) -> bytes:
    """Return the bytes of one item of value `fill`; empty when they are all zero.

    The integer 0 stands for zero bytes in every dtype, as in `numpy.zeros`.
    """
    if type(fill) in (int, bool) and fill == 0:
        return b""
    item = np.zeros((), dtype)
    try:
        with np.errstate(all="ignore"):
            item[...] = fill
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"fill {fill!r} cannot be cast to dtype {dtype}: {error}") from None
    given = np.asarray(fill)
    lossy = (
        dtype.kind in "iu"
        and given.dtype.kind in "fc"
        and not np.array_equal(item, np.broadcast_to(given, item.shape))
    )
    if lossy:
        raise UsageError(f"fill {fill!r} is not a value of dtype {dtype}")
    data = item.tobytes()
    if not any(data):
        return b""
    if dtype.subdtype is not None:
        size = dtype.subdtype[0].itemsize
        if data == data[:size] * (len(data) // size):
            return data[:size]
        if order == "F":
            raise UsageError(f"fill {fill!r} differs within an item of dtype {dtype}; this needs order='C'")
    return data


def array_options(
    name: str | None,
    shape: ShapeLike,
    dtype: npt.DTypeLike,
    *,
    consistency: str,
    page_size: int,
    home: str | int,
    fill: Any,
    order: str,
    max_staleness: float | None = None,
) -> RegionOptions:
    """Return the checked description of an array and of the region that holds it."""
    sizes, found = check_shape(shape), check_dtype(dtype)
    if not isinstance(order, str) or order not in ("C", "F"):
        raise UsageError(f"order is {shown(order)}; it is 'C' (rows together) or 'F' (columns together)")
    fill_bytes = encode_fill(fill, found, order)
    while found.subdtype is not None:  # numpy turns the items of a sub-array dtype into dimensions
        found, inner = found.subdtype
        sizes += inner
    if found.itemsize == 0 and found.kind in "SU":
        found = np.zeros((), found).dtype
    nbytes = math.prod(sizes) * found.itemsize
    check_options(page_size, consistency, home, nbytes)
    if len(sizes) > MAX_DIMENSIONS:  # those of a sub-array dtype among them
        raise UsageError(f"shape {sizes} has {len(sizes)} dimensions; numpy has at most {MAX_DIMENSIONS}")
    if math.prod(max(1, size) for size in sizes) * max(1, found.itemsize) > _NUMPY_MAX_BYTES:
        raise UsageError(
            f"shape {shown(sizes)} is too large for numpy although it has {nbytes} bytes: without its zeros "
            f"it would have more than {_NUMPY_MAX_BYTES}; use smaller sizes"
        )
    return RegionOptions(
        nbytes=nbytes,
        name=check_name(name, "the array"),
        page_size=int(page_size),
        consistency=consistency,
        home=home,
        fill=fill_bytes,
        max_staleness_ns=check_staleness(consistency, max_staleness),
        layout=ArrayLayout(sizes, encode_dtype(found), order),
    )


def region_options(
    name: str | None,
    nbytes: SupportsIndex,
    *,
    consistency: str,
    page_size: int,
    home: str | int,
    fill: int | bytes,
    max_staleness: float | None = None,
) -> RegionOptions:
    """Return the checked description of a region without array."""
    size = number(nbytes, "nbytes", "pass a number of bytes from 0 up")
    if size < 0:
        raise UsageError(f"nbytes is {size}; pass a number of bytes from 0 up")
    if isinstance(fill, int) and 0 <= fill <= 255:
        fill = bytes([fill])
    if not isinstance(fill, bytes):
        raise UsageError(f"fill is {shown(fill)}; pass bytes, or the value of a byte from 0 to 255")
    check_options(page_size, consistency, home, size)
    return RegionOptions(
        nbytes=size,
        name=name,
        page_size=int(page_size),
        consistency=consistency,
        home=home,
        fill=fill if any(fill) else b"",
        max_staleness_ns=check_staleness(consistency, max_staleness),
    )


def check_same(asked: RegionOptions, found: RegionOptions, contents: bool = True) -> None:
    """Refuse `found` when it is not what was `asked`, naming both; `contents` False: whatever the fill."""
    if not contents:
        asked = msgspec.structs.replace(asked, fill=found.fill)
    if asked == found:
        return
    have, want = explain(found), explain(asked)
    different = [f"{key}={have.get(key)} (asked for {want.get(key)})" for key in have | want
                 if have.get(key) != want.get(key)]  # fmt: skip
    raise UsageError(
        f"{asked.name!r} exists already with {', '.join(different) or 'other options'}; "
        f"use the same, open it with node.open({asked.name!r}), or choose another name"
    )


def explain(options: RegionOptions) -> dict[str, str]:
    """Return `options` as words and numbers for a message."""
    words = {
        "page_size": str(options.page_size),
        "consistency": repr(options.consistency),
        "home": repr(options.home),
    }
    if options.max_staleness_ns:
        words["max_staleness"] = f"{options.max_staleness_ns / 1e9:g}"
    if options.layout is None:
        return {"array": "none", "nbytes": str(options.nbytes), "fill": repr(options.fill), **words}
    dtype = decode_dtype(options.layout.dtype)
    fill = (
        str(np.frombuffer(options.fill, dtype)[0])
        if options.fill and len(options.fill) == dtype.itemsize
        else repr(options.fill)
    )
    return {
        "shape": str(tuple(options.layout.shape)),
        "dtype": str(dtype),
        "order": repr(options.layout.order),
        "fill": fill if options.fill else "0",
        **words,
    }
