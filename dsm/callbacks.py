"""Calling what a user wants to be called when something has happened.

Owns the thread in which that is done: one callback after the other, so that a slow one holds up nothing but
the others.  It is there only while some wait, and does not keep the interpreter from ending.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from dsm.errors import UsageError
from dsm.log import logger

Callback = Callable[[Any], object]


def checked_callback(callback: object) -> None:
    """Raise `UsageError` when this cannot be called."""
    if not callable(callback):
        raise UsageError(f"callback is a {type(callback).__name__}; pass a function of one argument")


class Callbacks:
    """Calls functions in a thread, in the order in which that was asked for.

    Parameters
    ----------
    name
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._mutex = threading.Lock()
        #: What to call, and with what.
        self._due: deque[tuple[Callback, Any]] = deque()
        self._running = False
        self._closed = False

    def call(self, callback: Callback, what: Any) -> None:
        """Call ``callback(what)`` soon; what it raises is logged.

        When no thread can be started, it is called with the next one.
        """
        with self._mutex:
            if self._closed:
                return
            self._due.append((callback, what))
            if self._running:
                return
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError as error:
                logger.error("a callback of %r waits: %s", what, error)
            else:
                self._running = True

    def close(self) -> None:
        """Call nothing any more; what runs is not waited for."""
        with self._mutex:
            self._closed = True
            self._due.clear()

    def _run(self) -> None:
        while True:
            with self._mutex:
                if not self._due:
                    self._running = False
                    return
                callback, what = self._due.popleft()
            try:
                callback(what)
            except BaseException:  # also of `sys.exit`: others wait, too
                logger.exception("a callback of %r raised; it is called once", what)
            del callback, what
