"""Diffs on their way: the bytes of pages that a writer changed, and how they are stored.

Owns the payload of a ``DIFF`` message in the simulation: a list of (page, offset, byte).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsm.coherence.messages import Kind, Message, Runs
from dsm.testing.simulation.network import Transfer
from dsm.testing.simulation.release.frames import Byte, LiveRegion

if TYPE_CHECKING:
    from dsm.testing.simulation.node import Node


class DiffTransfer(Transfer):
    """A message with changed bytes on its way; they were copied, so that no frame is in use."""

    __slots__ = ("changes",)

    def __init__(
        self, sender: Node, receiver: Node, message: Message, region: LiveRegion, changes: list[Byte]
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.message = message
        self.region = region
        self.payload = []
        self.accepted = False
        self.changes = changes

    def leave(self) -> None:
        """The last byte is in the kernel."""


def runs_of(pages: list[int]) -> Runs:
    """Return ascending pages as runs."""
    rows: list[list[int]] = []
    for page in pages:
        if rows and rows[-1][0] + rows[-1][1] == page:
            rows[-1][1] += 1
        else:
            rows.append([page, 1])
    return np.array(rows, np.int64).reshape(-1, 2)


def pages_of(runs: Runs) -> list[int]:
    """Return the pages of runs."""
    return [page for first, count in runs.tolist() for page in range(first, first + count)]


def touched(changes: list[Byte]) -> list[int]:
    """Return the pages that changes are about, ascending."""
    return sorted({page for page, _, _ in changes})


def of_runs(changes: list[Byte], runs: Runs) -> list[Byte]:
    """Return the changes of these pages."""
    pages = set(pages_of(runs))
    return [change for change in changes if change[0] in pages]


def header(region: int, request: int, node: int, changes: list[Byte]) -> Message:
    """Return the header of a message with these changes, which are not empty."""
    low, high = changes[0][0], changes[-1][0]
    return Message(int(Kind.DIFF), region, low, high - low + 1, request, node)
