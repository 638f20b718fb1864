"""The page table as people read it: rows that nodes sent, put together into one structured array.

Owns the columns and how a long table is gathered, piece by piece.  It does not know how a question comes to
a manager: a worker asks over its session, the command line over a socket of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from dsm.coherence.rows import ROW, UNKNOWN, Rows, parse
from dsm.coherence.states import State
from dsm.errors import InternalError, UsageError
from dsm.limits import MAX_ROWS
from dsm.wire.control import GetPages, Pages
from dsm.wire.status import SilentNode

COLUMNS: Final = np.dtype(
    [
        ("node", "i2"),
        ("page", "i8"),
        ("address", "u8"),
        ("size", "i4"),
        ("home", "i2"),
        ("owner", "i2"),
        ("permissions", "U3"),
        ("model", "U10"),
        ("state", "U12"),
        ("faults_read", "u4"),
        ("faults_write", "u4"),
        ("dirty", "?"),
        ("version", "u4"),
        ("copyset", "i2"),
        ("lease", "f8"),
    ]
)
#: Sends a question; gives the answer and the descriptor of its rows, which is the caller's.
Ask: TypeAlias = Callable[[GetPages], tuple[Pages, int]]

_PERMISSIONS = np.array(["---", "r--", "rw-"])
_STATES = np.array([state.name for state in State])
_COPIED: Final = ("faults_read", "faults_write", "version")

assert all(len(state.name) <= 12 for state in State)


def describe(ask: Ask, key: str | int) -> Pages:
    """Return what region that is, and which nodes live."""
    answer, descriptor = ask(GetPages(key, 0, 0))
    os.close(descriptor)
    return answer


def gather(
    ask: Ask, region: int, page: int, count: int, nodes: Sequence[int]
) -> tuple[npt.NDArray[Any], list[SilentNode]]:
    """Return the rows of a range, by page and then by node, and the nodes that did not answer.

    A node that does not answer is not asked again.
    """
    parts: list[npt.NDArray[Any]] = [np.empty(0, COLUMNS)]
    silent: list[SilentNode] = []
    left = tuple(nodes)
    end = page + count
    while page < end and left:
        pages = min(end - page, max(1, MAX_ROWS // len(left)))
        answer, descriptor = ask(GetPages(region, page, pages, left))
        try:
            parts.append(assemble(answer, _read(descriptor, answer)))
        finally:
            os.close(descriptor)
        silent += answer.silent
        quiet = {each.node for each in answer.silent}
        left = tuple(node for node in left if node not in quiet)
        page += pages
    return parts[1] if len(parts) == 2 else np.concatenate(parts), silent


def _read(descriptor: int, answer: Pages) -> Rows:
    """Return the rows of an answer, a line a node."""
    total = len(answer.nodes) * answer.count
    rows = parse(os.pread(descriptor, total * ROW.itemsize + 1, 0), total)
    if rows is None:
        raise InternalError(
            f"the manager's answer about {answer.count} pages is not {total} rows of a page table"
        )
    return rows.reshape(len(answer.nodes), answer.count)


def assemble(answer: Pages, rows: Rows) -> npt.NDArray[Any]:
    """Return what `rows` (a line a node) say, by page and then by node.

    Of home, owner and copyset the word of the home counts, in the rows of all nodes.
    """
    nodes = np.array(answer.nodes, np.int16)
    table = np.empty((answer.count, len(nodes)), COLUMNS)
    if not table.size:
        return table.reshape(0)
    page = np.arange(answer.page, answer.page + answer.count)[:, None]
    table["node"] = nodes
    table["page"] = page
    table["address"] = answer.address + page * answer.page_size
    table["size"] = answer.page_size
    table["model"] = answer.consistency
    table["permissions"] = _PERMISSIONS[rows["level"].T]
    table["state"] = _STATES[rows["state"].T]
    table["dirty"] = rows["dirty"].T
    table["lease"] = np.where(rows["lease"] == UNKNOWN, np.nan, rows["lease"] / 1e9).T
    for name in _COPIED:
        table[name] = rows[name].T
    decides = rows["home"] == nodes[:, None]
    known, which = decides.any(axis=0), decides.argmax(axis=0)
    every = np.arange(answer.count)
    for name in ("owner", "copyset"):
        table[name] = np.where(known, rows[name][which, every], rows[name].max(axis=0))[:, None]
    table["home"] = np.where(known, nodes[which], rows["home"]).T
    return table.reshape(-1)


def chosen(nodes: object, here: int, live: Sequence[int]) -> tuple[int, ...]:
    """Return the nodes that the argument `nodes` of `Node.page_table` means.

    Raises
    ------
    UsageError
        It is none of what is accepted, or a node that does not live.
    """
    if isinstance(nodes, str) and nodes in ("all", "here"):
        return tuple(live) if nodes == "all" else (here,)
    if not isinstance(nodes, (int, np.integer)) or isinstance(nodes, bool) or nodes not in live:
        raise UsageError(f'nodes={nodes!r}: pass "all", "here" or one of the live nodes {tuple(live)}')
    return (int(nodes),)
