"""Which rows there are, and the groups by which they are asked for.

Owns the names.  A row is measured by itself; the default group is quick and needs nothing else installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsm.bench import blocks, clients, dirty, examples, fill, jacobi, measure, service, sharing, watched
from dsm.bench.row import Row

#: How each row is measured.
ROWS: dict[str, Callable[[measure.Progress], Iterator[Row]]] = {
    **measure.ROWS,
    "jacobi": jacobi.rows,
    "sharing": sharing.rows,
    "dirty": dirty.rows,
    "fill": fill.rows,
    "watched": watched.rows,
    "blocks": blocks.rows,
    "leases": service.rows,
    "clients": clients.rows,
    **{name: examples.program_rows(name) for name in examples.OPTIONS},
    "placement": examples.placement_rows,
}
#: Several rows under one name.
GROUPS: dict[str, list[str]] = {
    "basic": list(measure.ROWS),
    "fault": ["fault", "fault --write"],
    "release": ["jacobi", "sharing", "dirty", "fill"],
    "memory": ["blocks", "leases", "clients"],
    "programs": list(examples.OPTIONS),
    "all": list(ROWS),
}
