"""What a cluster said of itself, as tables: a column for each value of `dsm.wire.status`.

Owns the names of tables and columns.  They follow from the types: a value is a column, a value of values
(the holder of a lock) gives a column for each with its name in front, numbers are joined with commas, and of
a list of anything else its length is told; what is in it has a table of its own.  Pure.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from dsm.manager.metadata.options import SYNC_KINDS
from dsm.wire import status
from dsm.worker.pagetable import COLUMNS


@dataclass(frozen=True)
class Table:
    """A table: its columns with the types that SQLite knows, and what its rows are."""

    name: str
    about: str
    columns: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(name for name, _ in self.columns)


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """Return the struct that a value of that type may be, or None."""
    for each in typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,):
        if isinstance(each, type) and issubclass(each, msgspec.Struct):
            return each
    return None


def _columns(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(struct)
    for name in struct.__struct_fields__:
        kind = hints[name]
        inner = _struct_in(kind)
        if inner is not None:
            yield from _columns(inner, f"{prefix}{name}_")
            continue
        optional = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        of_numbers = typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is int
        text = str in optional or of_numbers
        yield prefix + name, "TEXT" if text else "REAL" if float in optional else "INTEGER"


def _values(struct: type[msgspec.Struct], it: Any) -> Iterator[Any]:
    hints = typing.get_type_hints(struct)
    for name in struct.__struct_fields__:
        value = None if it is None else getattr(it, name)
        inner = _struct_in(hints[name])
        if inner is not None:
            yield from _values(inner, value)
        elif isinstance(value, tuple):
            of_numbers = typing.get_args(hints[name])[0] is int
            yield ",".join(map(str, value)) if of_numbers else len(value)
        else:
            yield int(value) if isinstance(value, bool) else value


def _table(name: str, about: str, struct: type[msgspec.Struct], *before: tuple[str, str]) -> Table:
    return Table(name, about, (*before, *_columns(struct)))


_NODE: Final = ("node", "INTEGER")
_WORKER: Final = (_NODE, ("worker", "INTEGER"), ("rank", "INTEGER"))
_OBJECT: Final = (
    ("object", "INTEGER"),
    ("kind", "TEXT"),
    ("name", "TEXT"),
    ("role", "TEXT"),
    ("place", "INTEGER"),
)
_TYPES: Final = {"f": "REAL", "U": "TEXT"}

PAGES: Final = Table(
    "pages",
    "a page on a node; faults = faults_read + faults_write",
    (
        ("region", "INTEGER"),
        ("name", "TEXT"),
        *((name, _TYPES.get(COLUMNS[name].kind, "INTEGER")) for name in COLUMNS.names or ()),
        ("faults", "INTEGER"),
    ),
)
NODES: Final = Table(
    "nodes",
    "a node; answered = 0: nothing else is known of it",
    (*_columns(status.NodeStatus), ("answered", "INTEGER")),
)
#: Every table but `pages` and `nodes`: which list of a node's part it shows, and of what type.
_LISTS: Final[dict[str, tuple[Table, type[msgspec.Struct]]]] = {
    "workers": (_table("workers", "a worker process", status.WorkerStatus, _NODE), status.WorkerStatus),
    "regions": (_table("regions", "a region on a node", status.RegionStatus, _NODE), status.RegionStatus),
    "pins": (_table("pins", "pages that a worker holds", status.PinStatus, _NODE), status.PinStatus),
    "transactions": (
        _table("transactions", "pages on their way, by their directory node", status.Transaction, _NODE),
        status.Transaction,
    ),
    "demands": (
        _table("demands", "pages of a node that others want", status.Demand, _NODE),
        status.Demand,
    ),
    "objects": (
        _table("objects", "a lock, barrier, ...: each kind has a table, too", status.ObjectStatus),
        status.ObjectStatus,
    ),
    "leases": (_table("leases", "a mapped lease", status.LeaseStatus), status.LeaseStatus),
    "unready": (_table("unready", "a region that cannot be opened yet", status.Unready), status.Unready),
}
_WAITS: Final = _table("waits", "a thread that waits", status.Wait, *_WORKER)
_PARTIES: Final = _table(
    "parties", "who holds (role) an object, or waits for it, by place", status.PartyStatus, *_OBJECT
)

TABLES: Final[tuple[Table, ...]] = (
    PAGES, NODES, *(table for table, _ in _LISTS.values()), _WAITS, _PARTIES,
)  # fmt: skip


def kinds(cluster: status.ClusterStatus) -> list[str]:
    """Return the kinds of objects that have a table, also while there are none, and others that there are."""
    found = {it.kind for node in cluster.nodes for it in node.objects if it.kind.isidentifier()}
    return [*SYNC_KINDS, *sorted(found.difference(SYNC_KINDS))]


def rows(cluster: status.ClusterStatus) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield the rows of every table but `pages`."""
    nodes = [(*_values(status.NodeStatus, node), 1) for node in cluster.nodes]
    yield NODES.name, nodes + [_unheard(node) for node in cluster.silent]
    for name, (table, struct) in _LISTS.items():
        before = len(table.columns) - len(list(_columns(struct)))
        found = [
            ((node.node,) * before + tuple(_values(struct, it)))
            for node in cluster.nodes
            for it in getattr(node, name)
        ]
        yield name, found
    yield (
        _WAITS.name,
        [
            (node.node, worker.worker, worker.rank, *_values(status.Wait, wait))
            for node in cluster.nodes
            for worker in node.workers
            for wait in worker.waits
        ],
    )
    yield _PARTIES.name, [row for node in cluster.nodes for it in node.objects for row in _parties(it)]


def _unheard(node: status.SilentNode) -> tuple[Any, ...]:
    said = {"address": node.remote, "socket": node.socket, "pid": node.pid, "state": node.state}
    known = {name: value or None for name, value in said.items()} | {"node": node.node, "answered": 0}
    return tuple(map(known.get, NODES.names))


def _parties(it: status.ObjectStatus) -> Iterator[tuple[Any, ...]]:
    for role in it.__struct_fields__:
        value = getattr(it, role)
        parties = value if isinstance(value, tuple) else (value,)
        for place, party in enumerate(parties):
            if isinstance(party, status.PartyStatus):
                yield it.object, it.kind, it.name, role, place, *_values(status.PartyStatus, party)
