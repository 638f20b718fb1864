"""Which thread of this process holds which lock, and how.

Owns the tokens of threads (never used again) and what is noted of each hold.
"""

from __future__ import annotations

import itertools
import threading
from enum import Enum

_tokens = itertools.count(1)
_thread = threading.local()


def owner_token() -> int:
    """Return what names this thread as the owner of a lock; no other thread of this process ever has it."""
    token: int | None = getattr(_thread, "token", None)
    if token is None:
        token = _thread.token = next(_tokens)
    return token


class Hold(Enum):
    """How a thread holds a lock."""

    #: As ever; of a rwlock: alone.
    NORMAL = 0
    #: It was told OwnerDiedError: what the lock protects may be half written.
    INCONSISTENT = 1
    #: It has repaired that, and may acquire the lock that it holds, once.
    REPAIRED = 2
    #: For reading, with others.
    SHARED = 3


class HeldLocks:
    """Which locks the threads of this process hold, and how: object number, owner token → hold."""

    def __init__(self) -> None:
        self._holds: dict[tuple[int, int], Hold] = {}

    def clear(self) -> None:
        """Forget them: the node was closed, or this is a child of fork, which holds none."""
        self._holds.clear()

    def of(self, number: int, token: int) -> Hold | None:
        """How the thread of that token holds that lock; None when it does not."""
        return self._holds.get((number, token))

    def add(self, number: int, token: int, hold: Hold) -> None:
        """Note that the thread has it now, in that way."""
        self._holds[number, token] = hold

    def restore(self, number: int, token: int, hold: Hold) -> None:
        """Note that the thread still has it in that way, unless another one has it alone by now."""
        if hold is Hold.SHARED or all(number != held for held, _ in list(self._holds)):
            self._holds[number, token] = hold

    def remove(self, number: int, token: int) -> None:
        """Note that the thread does not have it any more."""
        self._holds.pop((number, token), None)
