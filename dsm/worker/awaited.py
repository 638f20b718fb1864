"""Threads of ours that others wait for, and what may be done in them.

Python collects garbage in whichever thread allocates: a program's finalizers (``__del__``, callbacks of weak
references) run in ours, too.  One that waited there might wait for its own thread.  Owns which threads these
are; the refusal of what would wait in one; and a thread for what gives something back, which is done there.
"""

from __future__ import annotations

import _thread
import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec

from dsm.errors import UsageError
from dsm.log import logger

P = ParamSpec("P")


class _Here(threading.local):
    """What is known of the calling thread."""

    awaited = False


_here = _Here()


def note() -> None:
    """From now on others wait for the calling thread."""
    _here.awaited = True


def refuse() -> None:
    """Raise `UsageError` in a thread that others wait for."""
    if _here.awaited:
        raise UsageError(
            "a finalizer (__del__, or a callback of a weak reference) waits for dsm in a thread of dsm that "
            f"others wait for ({threading.current_thread().name!r}), where Python happened to run it; in any "
            "thread things can be given back (free, release, destroy): let it leave the rest to a thread of "
            "the program"
        )


def elsewhere(function: Callable[P, None]) -> Callable[P, None]:
    """Return `function`, which is left to another thread where others wait for this one.

    It comes soon then; what it raises is logged.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        if _here.awaited:
            _thread.start_new_thread(_run, (function, args, kwargs))
        else:
            function(*args, **kwargs)

    return wrapper


def _run(function: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        function(*args, **kwargs)
    except Exception:
        logger.exception("what a finalizer gave back by %s could not be given back", function.__qualname__)


class Lock:
    """A lock that is held while something is waited for.

    Reentrant, for a signal handler or a finalizer may come in its thread while it is held.  Threads that
    others wait for never take it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        refuse()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
