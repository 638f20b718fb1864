"""Properties of heaps: where a value comes from when a caller of `Node.heap` gives none.

Owns their names, defaults and what is accepted.  An argument goes before the environment, that before the
table ``[heap]`` of the TOML file that DSM_CONFIG names, that before the default.  A name that no property
has is refused, in both: nothing is read and ignored.

====================  ====================================  ==========================================
property              environment                           default
====================  ====================================  ==========================================
``kind``              ``DSM_HEAP_KIND``                     ``"lazy"``
``eager_manager``     ``DSM_HEAP_EAGER_MANAGER``            ``"pooled"``: of eager heaps
``lazy_manager``      ``DSM_HEAP_LAZY_MANAGER``             ``"direct"``: of lazy heaps
``min_system_alloc``  ``DSM_HEAP_MIN_SYSTEM_ALLOC``         ``"16M"``
``max_bytes``         ``DSM_HEAP_MAX_BYTES``                0: without bound
``page_size``         ``DSM_HEAP_PAGE_SIZE``                4096
``consistency``       ``DSM_HEAP_CONSISTENCY``              ``"sequential"``
``debug``             ``DSM_HEAP_DEBUG``                    false
====================  ====================================  ==========================================
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from dsm.errors import TooLargeError, UsageError
from dsm.limits import MAX_PAGE_BYTES, MAX_REGION_BYTES, OS_PAGE_BYTES
from dsm.types import HEAP_CONSISTENCIES, HEAP_KINDS, HEAP_MANAGERS, HeapOptions
from dsm.units import bytes_of

#: The environment's name of each property.
VARIABLES = {
    "kind": "DSM_HEAP_KIND",
    "eager_manager": "DSM_HEAP_EAGER_MANAGER",
    "lazy_manager": "DSM_HEAP_LAZY_MANAGER",
    "min_system_alloc": "DSM_HEAP_MIN_SYSTEM_ALLOC",
    "max_bytes": "DSM_HEAP_MAX_BYTES",
    "page_size": "DSM_HEAP_PAGE_SIZE",
    "consistency": "DSM_HEAP_CONSISTENCY",
    "debug": "DSM_HEAP_DEBUG",
}
DEFAULTS: dict[str, Any] = {
    "kind": "lazy",
    "eager_manager": "pooled",
    "lazy_manager": "direct",
    "min_system_alloc": 16 * 1024 * 1024,
    "max_bytes": 0,
    "page_size": 4096,
    "consistency": "sequential",
    "debug": False,
}
_TRUTHS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SHOWN = 80


def heap_options(
    name: str, given: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[HeapOptions, tuple[str, ...]]:
    """Return the options of a heap, and which of them its caller chose.

    Parameters
    ----------
    name
        Of the heap.
    given
        Arguments of `Node.heap` by name; None: not given.
    environ
        The environment.

    Raises
    ------
    UsageError
        A value is not accepted, or a property does not exist; the message says where it stands.
    """
    values = dict(DEFAULTS)
    for key, (value, where) in (_from_file(environ) | _from_environment(environ)).items():
        values[key] = _CHECKS[key](value, where)
    chosen = {key: _CHECKS[key](value, key) for key, value in given.items() if value is not None}
    kind = chosen.get("kind", values["kind"])
    manager = chosen.get("manager", values[f"{kind}_manager"])
    values |= chosen
    if 0 < values["max_bytes"] < values["page_size"]:
        raise UsageError(
            f"max_bytes is {values['max_bytes']}, and page_size {values['page_size']}: the heap could not "
            "have a single page; raise max_bytes, or lower page_size"
        )
    options = HeapOptions(
        name=name,
        kind=kind,
        manager=manager,
        min_system_alloc=values["min_system_alloc"],
        max_bytes=values["max_bytes"],
        page_size=values["page_size"],
        consistency=values["consistency"],
        debug=values["debug"],
    )
    return options, tuple(chosen)


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    names = {variable: key for key, variable in VARIABLES.items()}
    found: dict[str, tuple[Any, str]] = {}
    for variable, text in environ.items():
        if variable.startswith("DSM_HEAP_") and text:
            if variable not in names:
                raise UsageError(f"{variable} is set, which is no property; there are {', '.join(names)}")
            found[names[variable]] = text, variable
    return found


def _from_file(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    path = environ.get("DSM_CONFIG")
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            contents = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"DSM_CONFIG is {path!r}, which cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of numbers without end
        raise UsageError(f"DSM_CONFIG is {path!r}, which is no TOML: {error}") from None
    table = contents.get("heap", {})
    if not isinstance(table, dict):
        raise UsageError(f"heap is {_short(table)} in {path}; it must be a table: [heap]")
    unknown = table.keys() - VARIABLES.keys()
    if unknown:
        raise UsageError(
            f"[heap] of {path} has {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(VARIABLES)}"
        )
    return {key: (value, f"{key} in [heap] of {path}") for key, value in table.items()}


def _one_of(accepted: tuple[str, ...]) -> Callable[[Any, str], Any]:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in accepted:
            raise UsageError(f"{where} is {_short(value)}; it must be {' or '.join(map(repr, accepted))}")
        return value

    return check


def _bytes(value: Any, where: str) -> int:
    try:
        return bytes_of(value, where)
    except TooLargeError as error:  # what a property cannot be is written wrong
        raise UsageError(str(error)) from None


def _extent(value: Any, where: str) -> int:
    size = _bytes(value, where)
    if not OS_PAGE_BYTES <= size <= MAX_REGION_BYTES:
        raise UsageError(
            f"{where} is {_short(value)}; it must be {OS_PAGE_BYTES} to {MAX_REGION_BYTES} bytes"
        )
    return size


def _bound(value: Any, where: str) -> int:
    size = _bytes(value, where)
    if 0 < size < OS_PAGE_BYTES or size >= 1 << 63:
        raise UsageError(
            f"{where} is {_short(value)}; it must be at least {OS_PAGE_BYTES} bytes, or 0: without bound"
        )
    return size


def _page_size(value: Any, where: str) -> int:
    size = _bytes(value, where)
    if not OS_PAGE_BYTES <= size <= MAX_PAGE_BYTES or size & (size - 1):
        raise UsageError(
            f"{where} is {_short(value)}; it must be a power of two from {OS_PAGE_BYTES} to {MAX_PAGE_BYTES}"
        )
    return size


def _truth(value: Any, where: str) -> bool:
    found = _TRUTHS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise UsageError(f"{where} is {_short(value)}; it must be true or false")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "kind": _one_of(HEAP_KINDS),
    "manager": _one_of(HEAP_MANAGERS),
    "eager_manager": _one_of(HEAP_MANAGERS),
    "lazy_manager": _one_of(HEAP_MANAGERS),
    "min_system_alloc": _extent,
    "max_bytes": _bound,
    "page_size": _page_size,
    "consistency": _one_of(HEAP_CONSISTENCIES),
    "debug": _truth,
}
