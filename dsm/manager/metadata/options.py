"""Which regions and objects may be created, and how two descriptions of one region differ.

Owns the rules that hold whatever store keeps the metadata.  Pure.  Every message names the value, the
bound and what to do.
"""

from __future__ import annotations

import msgspec

from dsm.errors import UsageError
from dsm.limits import (
    MAX_NAME_BYTES,
    MAX_PAGE_BYTES,
    MAX_REGION_BYTES,
    MAX_STALENESS_NS,
    MIN_STALENESS_NS,
    OS_PAGE_BYTES,
)
from dsm.types import (
    CONSISTENCIES,
    HEAP_CONSISTENCIES,
    HEAP_KINDS,
    HEAP_MANAGERS,
    MAX_DIMENSIONS,
    MAX_PARTIES,
    MAX_UNITS,
    PLACEMENTS,
    USES,
    ArrayLayout,
    HeapOptions,
    RegionOptions,
    SyncObject,
)

SYNC_KINDS = ("lock", "rwlock", "semaphore", "condition", "event", "barrier", "atomic")
#: Number of a synchronization object: 32 bits in a header.
MAX_OBJECT = 2**32 - 1
MAX_RANK = 2**31 - 1
#: Characters of a value that an error message shows.
_SHOWN = 80


def check_name(what: str, name: str) -> None:
    """Raise `UsageError` unless `name` can be the name of a `what`."""
    if not name:
        raise UsageError(f'a {what} cannot have the empty name ""; give it one of at least one character')
    if not name.isprintable():
        raise UsageError(
            f"the {what} name {_short(name)} has characters that cannot be printed, such as line ends; "
            "use letters, digits, blanks and punctuation"
        )
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        raise UsageError(
            f"the {what} name {_short(name)} has {size} bytes in UTF-8, at most {MAX_NAME_BYTES} are "
            "allowed; choose a shorter one"
        )


def check_options(options: RegionOptions, members: tuple[int, ...]) -> RegionOptions:
    """Return `options` in their normal form (a fill of zeros is empty), or raise `UsageError`.

    Parameters
    ----------
    options
        What the creator of a region wants.
    members
        Live nodes: a node named as home must be one of them.
    """
    if options.name is not None:
        check_name("region", options.name)
    if not 0 <= options.nbytes <= MAX_REGION_BYTES:
        raise UsageError(
            f"a region of nbytes={options.nbytes} cannot be made: from 0 to {MAX_REGION_BYTES} are allowed; "
            "divide the data among several regions"
        )
    _check_page_size(options.page_size)
    _check_consistency(options.consistency)
    _check_staleness(options)
    _check_home(options.home, members)
    if options.layout is not None:
        _check_layout(options.layout)
    if options.use not in USES:
        raise UsageError(f"a region for {_short(options.use)} is unknown; use {', '.join(USES)}")
    if options.heap is not None:
        check_name("heap", options.heap)
    if options.fill and not options.fill.strip(b"\0"):
        return msgspec.structs.replace(options, fill=b"")
    return options


def _check_page_size(page_size: int) -> None:
    if page_size & (page_size - 1) or not OS_PAGE_BYTES <= page_size <= MAX_PAGE_BYTES:
        raise UsageError(
            f"page_size={page_size} is not {OS_PAGE_BYTES} times a power of two up to {MAX_PAGE_BYTES}; "
            "use for instance 4096, 16384 or 65536"
        )


def _check_consistency(consistency: str) -> None:
    if consistency not in CONSISTENCIES:
        known = " or ".join(f'"{model}"' for model in CONSISTENCIES)
        raise UsageError(f"consistency={_short(consistency)} is unknown; use {known}")


def _check_staleness(options: RegionOptions) -> None:
    staleness = options.max_staleness_ns
    if options.consistency != "bounded":
        if staleness:
            raise UsageError(
                f'max_staleness of {staleness} ns with consistency="{options.consistency}": only "bounded" '
                "has one; leave it out"
            )
    elif not MIN_STALENESS_NS <= staleness <= MAX_STALENESS_NS:
        raise UsageError(
            f"max_staleness of {staleness} ns is not from {MIN_STALENESS_NS} to {MAX_STALENESS_NS}; "
            "say by how much a value that is read may be old"
        )


def _check_home(home: str | int, members: tuple[int, ...]) -> None:
    if isinstance(home, int):
        if home not in members:
            live = ", ".join(map(str, members))
            raise UsageError(f"home={home} is not a live node; the live nodes are {live}")
    elif home not in PLACEMENTS:
        known = ", ".join(f'"{each}"' for each in PLACEMENTS)
        raise UsageError(f"home={_short(home)} is unknown; use {known} or the number of a node")


def _check_layout(layout: ArrayLayout) -> None:
    if layout.order not in ("C", "F"):
        raise UsageError(f'order={_short(layout.order)} is unknown; use "C" or "F"')
    if len(layout.shape) > MAX_DIMENSIONS:
        raise UsageError(
            f"a shape of {len(layout.shape)} dimensions is too long; numpy allows at most {MAX_DIMENSIONS}"
        )
    if any(length < 0 for length in layout.shape):
        raise UsageError(f"shape={layout.shape} has a negative length; lengths are 0 or more")


def differences(existing: RegionOptions, asked: RegionOptions) -> list[str]:
    """Say field by field how two normalized descriptions differ; bytes decide, so that nan equals nan."""
    found: list[str] = []
    pairs: list[tuple[str, object, object]] = []
    old, new = existing.layout, asked.layout
    if old is not None and new is not None:
        pairs += [(field, getattr(old, field), getattr(new, field)) for field in ("shape", "dtype", "order")]
    elif old is not new:
        kinds = ("raw bytes", "an array")
        found.append(f"it is {kinds[old is not None]}, asked for was {kinds[new is not None]}")
    for field in ("nbytes", "page_size", "consistency", "max_staleness_ns", "home", "fill"):
        pairs.append((field, getattr(existing, field), getattr(asked, field)))
    return found + [f"{field} is {_short(a)}, asked for was {_short(b)}" for field, a, b in pairs if a != b]


def check_same(existing: RegionOptions, asked: RegionOptions) -> None:
    """Raise `UsageError`, naming every difference, unless both describe the same region."""
    found = differences(existing, asked)
    if found:
        name = existing.name or ""
        raise UsageError(
            f'region "{name}" exists with other options: {"; ".join(found)}. Take it as it is with '
            f"node.open({name!r}), end it with node.destroy({name!r}), or choose another name"
        )


def check_heap(options: HeapOptions) -> None:
    """Raise `UsageError` unless such a heap may be created."""
    check_name("heap", options.name)
    for field, accepted in (
        ("kind", HEAP_KINDS),
        ("manager", HEAP_MANAGERS),
        ("consistency", HEAP_CONSISTENCIES),
    ):
        value = getattr(options, field)
        if value not in accepted:
            known = " or ".join(f'"{each}"' for each in accepted)
            raise UsageError(f'heap "{options.name}" cannot have {field}={_short(value)}; use {known}')
    _check_page_size(options.page_size)
    if not OS_PAGE_BYTES <= options.min_system_alloc <= MAX_REGION_BYTES:
        raise UsageError(
            f'heap "{options.name}" cannot have min_system_alloc={options.min_system_alloc}: from '
            f"{OS_PAGE_BYTES} to {MAX_REGION_BYTES} bytes are allowed"
        )
    if options.max_bytes and not OS_PAGE_BYTES <= options.max_bytes < 1 << 63:
        raise UsageError(
            f'heap "{options.name}" cannot have max_bytes={options.max_bytes}: at least '
            f"{OS_PAGE_BYTES} bytes, or 0 for no bound"
        )


def check_same_heap(existing: HeapOptions, asked: HeapOptions, given: tuple[str, ...]) -> None:
    """Raise `UsageError`, naming every difference, unless the `given` options are those of the heap."""
    fields = ("kind", "manager", "min_system_alloc", "max_bytes", "page_size", "consistency", "debug")
    pairs = [(field, getattr(existing, field), getattr(asked, field)) for field in fields if field in given]
    found = [f"{field} is {_short(a)}, asked for was {_short(b)}" for field, a, b in pairs if a != b]
    if found:
        name = existing.name
        raise UsageError(
            f'heap "{name}" exists with other options: {"; ".join(found)}. Take it as it is with '
            f"node.heap({name!r}), end it with its destroy(), or choose another name"
        )


def check_sync(kind: str, name: str, value: int, bounded: bool = False) -> None:
    """Raise `UsageError` unless such a synchronization object may be created."""
    if kind not in SYNC_KINDS:
        known = ", ".join(f'"{each}"' for each in SYNC_KINDS)
        raise UsageError(f"a synchronization object of kind {_short(kind)} is unknown; there are {known}")
    check_name(kind, name)
    if kind == "barrier" and not 1 <= value <= MAX_PARTIES:
        raise UsageError(
            f'barrier "{name}" cannot have parties={value}: from 1 to {MAX_PARTIES} are allowed; '
            "give the number of threads that meet there"
        )
    if kind == "atomic" and not -(2**63) <= value < 2**63:
        raise UsageError(
            f'atomic "{name}" cannot begin with initial={value}: it holds 64 bits, '
            f"{-(2**63)} to {2**63 - 1}; use a smaller number"
        )
    if kind == "semaphore" and not int(bounded) <= value <= MAX_UNITS:
        raise UsageError(
            f'semaphore "{name}" cannot begin with value={value}: from {int(bounded)} to {MAX_UNITS} are '
            "allowed; give the number of units"
        )
    if kind == "condition" and not 1 <= value <= MAX_OBJECT:
        raise UsageError(f'condition "{name}" cannot have the lock number {value}; give it a lock')


def check_same_sync(existing: SyncObject, value: int, bounded: bool) -> None:
    """Raise `UsageError` unless `value` and `bounded` are those of the object that exists.

    The initial value of an atomic has no effect then.
    """
    kind, name, known = existing.kind, existing.name, existing.value
    if kind == "barrier" and known != value:
        raise UsageError(
            f'barrier "{name}" exists with parties={known}, asked for was parties={value}; '
            f"give parties={known}, or choose another name"
        )
    if kind == "semaphore" and (known, existing.bounded) != (value, bounded):
        raise UsageError(
            f'semaphore "{name}" exists with value={known}, bounded={existing.bounded}, asked for was '
            f"value={value}, bounded={bounded}; give the same, or choose another name"
        )


def check_rank(rank: int, ranks: int) -> None:
    """Raise `UsageError` unless `rank` is one of a job of `ranks` (0: not limited by a launcher)."""
    highest = ranks - 1 if ranks else MAX_RANK
    if not 0 <= rank <= highest:
        raise UsageError(
            f"DSM_RANK={rank} is no rank of this job, which has ranks 0 to {highest}; "
            "set it to one of them, or unset it"
        )


def _short(value: object) -> str:
    """Return `value` for a message, cut when it is long; bytes as hexadecimal."""
    if isinstance(value, bytes):
        text = f"0x{value.hex()}" if value else "zeros"
    elif isinstance(value, str) and "\n" not in value and '"' not in value and value.isprintable():
        text = f'"{value}"'
    else:
        text = str(value) if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
