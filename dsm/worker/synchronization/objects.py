"""Which synchronization objects this process has opened.

Owns the table of descriptions, and opening one again in another process (pickle).
"""

from __future__ import annotations

from typing import Any

from dsm.errors import UsageError
from dsm.types import FENCE, SyncObject
from dsm.wire import control
from dsm.worker import layouts
from dsm.worker.session import Session


class ObjectTable:
    """Synchronization objects that this process has opened; they live as long as their cluster."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[tuple[str, str], SyncObject] = {}

    def get(self, kind: str, name: str, value: int = 0, bounded: bool = False) -> SyncObject:
        """Create or find the object of that kind and name; `FENCE` is `fence`'s alone."""
        if name is None:
            raise UsageError(f"name of the {kind} is None; pass a string, the same in every worker")
        layouts.check_name(name, f"the {kind}")
        if (kind, name) == ("atomic", FENCE):
            raise UsageError(f"the name {name!r} is reserved for node.acquire() and node.release()")
        return self._open(kind, name, value, bounded)

    def fence(self) -> SyncObject:
        """Create or find the atomic of `Node.acquire` and `Node.release`."""
        return self._open("atomic", FENCE, 0, False)

    def _open(self, kind: str, name: str, value: int, bounded: bool) -> SyncObject:
        found = self._known.get((kind, name))
        if found is None or self._session.lost or _differs(found, value, bounded):
            reply, _ = self._session.call(control.OpenSync(kind, name, value, bounded), control.SyncOpened)
            found = self._known[kind, name] = reply.object
        return found


def _differs(found: SyncObject, value: int, bounded: bool) -> bool:
    """Whether the coordinator has to say what is wrong."""
    if found.kind in ("semaphore", "condition"):
        return (found.value, found.bounded) != (value, bounded)
    return False


def reopen(method: str, *arguments: Any) -> Any:
    """Return what a method of this process's node gives: how handles are pickled."""
    from dsm.worker.attach import attach

    return getattr(attach(), method)(*arguments)
