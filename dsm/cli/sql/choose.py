"""Which cluster is asked, and its pages: what `dsm pages` and `dsm sql` have in common.

Owns the choice among the clusters of this machine, the question about pages to one of its managers, and what
a verb says and returns when that does not work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from dsm.cli.status.ask import Conversation, local_name, look
from dsm.errors import DSMError, NodeLostError, UsageError
from dsm.proc import manager_sockets
from dsm.wire import control
from dsm.wire.status import STOPPED, ClusterStatus, SilentNode
from dsm.worker import pagetable

#: Rows of pages that are put into a database: more is more than anybody reads, and some seconds.
MAX_TABLE_ROWS = 4_000_000
#: Pages of a region that are fetched before their rows go into a database.
PIECE = 1 << 16


class NobodyError(DSMError):
    """There is no cluster, or nobody of it who can be asked."""


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare which manager is asked, and for how long."""
    parser.add_argument(
        "--at",
        metavar="ADDRESS",
        help="a manager's local name, @dsm-... (default: DSM_NODE, else the only cluster of this machine)",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="give up after S seconds (60)"
    )


def run_verb(verb: str, options: argparse.Namespace, answer: Callable[[argparse.Namespace], int]) -> int:
    """Return what `answer` does; 1 when nobody can be asked, 2 when a word is wrong, 130 after Ctrl-C."""
    try:
        if options.limit < 0 or not options.timeout > 0:
            raise UsageError("--limit and --timeout are not negative, --timeout not 0")
        return answer(options)
    except KeyboardInterrupt:
        return 130
    except DSMError as error:
        print(f"dsm {verb}: {error}", file=sys.stderr)
        return 1 if isinstance(error, NobodyError) else 2


def cluster(address: str | None) -> ClusterStatus:
    """Return what the cluster of `address` says; without an address, that of DSM_NODE or the only one.

    Raises
    ------
    NobodyError, UsageError
        There is none, or there are several.
    """
    said = os.environ.get("DSM_NODE", "")
    address = address or (local_name(said) if "@" in said else None)
    try:
        found = look(address)
    except (OSError, DSMError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NobodyError(f"no manager answers at {address}: {reason}") from None
    if not found.clusters:
        silent = "".join(
            f"; the manager at {each.socket} cannot be asked: {each.reason}" for each in found.silent
        )
        raise NobodyError(f"no dsm cluster runs on this machine (as this user){silent}")
    if len(found.clusters) > 1:
        sockets = (min(node.socket for node in each.nodes) for each in found.clusters if each.nodes)
        raise UsageError(
            f"{len(found.clusters)} clusters run here; choose one with --at: {', '.join(sorted(sockets))}"
        )
    return found.clusters[0]


class Pages:
    """The page tables of a cluster, asked of one of its managers on this machine.

    Raises
    ------
    NobodyError
        None of them can be asked.
    """

    def __init__(self, of: ClusterStatus) -> None:
        here = manager_sockets()
        sockets = [node.socket for node in of.nodes if node.socket in here]
        if not sockets:
            raise NobodyError("no manager of the cluster on this machine can be asked")
        self._manager = Conversation(sockets[0])
        #: Nodes that did not answer, by number: they are not asked again.
        self.silent = {node.node: node for node in of.silent}

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.__exit__()

    def _ask(self, question: control.GetPages) -> tuple[control.Pages, int]:
        try:
            return self._manager.ask(question, control.Pages)
        except TimeoutError:
            raise NodeLostError(f"the manager at {self._manager.address} does not answer any more") from None

    def describe(self, key: str | int) -> control.Pages:
        """Return what region that is, and which nodes live."""
        return pagetable.describe(self._ask, key)

    def table(self, region: control.Pages, page: int, count: int) -> npt.NDArray[Any]:
        """Return the page table of a part of a region, from the nodes that answer."""
        nodes = [node for node in region.nodes if node not in self.silent]
        if not nodes:
            return np.empty(0, pagetable.COLUMNS)
        table, silent = pagetable.gather(self._ask, region.region, page, count, nodes)
        self.silent.update((each.node, each) for each in silent)
        return table


def tell_silent(verb: str, silent: Iterable[SilentNode]) -> None:
    """Say on standard error whose rows are missing, and why."""
    for each in sorted(silent, key=lambda node: node.node):
        state = STOPPED.get(each.state, "stopped, cut off or gone")
        where = f" (pid {each.pid})" if each.pid else f" ({each.remote})" if each.remote else ""
        advice = f"; `kill -CONT {each.pid}` lets it go on" if each.state == "T" else ""
        print(
            f"dsm {verb}: node {each.node}{where} does not answer: {state}; its rows are missing{advice}",
            file=sys.stderr,
        )
