"""Plain numpy under dsm's names: a node of one worker whose arrays are its own.

Owns the comparison of a program with itself: what the program costs when nothing is shared.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from dsm.worker.statistics import Statistics


class Alone:
    """What a program of one worker uses of `dsm.Node`."""

    rank, size, node_id = 0, 1, 0

    def array(self, name: str, shape: Any, dtype: npt.DTypeLike = "f8", **options: Any) -> Any:
        """Return an array of zeros; how it would have been shared does not matter."""
        return np.zeros(shape, dtype)

    def barrier(self, name: str | None = None, parties: int = 1) -> None:
        """Nobody else comes."""

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Nobody else wants it."""
        return contextlib.nullcontext()

    def prefetch(self, array: Any, write: bool = False) -> None:
        """All is here."""

    def statistics(self) -> Statistics:
        """Nothing moves."""
        return Statistics()
