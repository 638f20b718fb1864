"""What a handle of any synchronization object has.

Owns which object it is, and what the answers of its home mean.
"""

from __future__ import annotations

import functools

from dsm.types import SyncObject
from dsm.worker.causes import explain


class Handle:
    """A synchronization object of the cluster, as one process holds it.

    Parameters
    ----------
    described
        The object.
    """

    def __init__(self, described: SyncObject) -> None:
        self._described = described
        self._number = described.object
        self._meaning = functools.partial(explain, described)

    @property
    def name(self) -> str:
        """Its name."""
        return self._described.name

    @property
    def _what(self) -> str:
        """What it is called in messages."""
        return f"{self._described.kind} {self.name!r}"
