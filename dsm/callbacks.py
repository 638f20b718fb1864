"""Calling what a user wants to be called when something has happened.

Owns the thread in which that is done: one callback after the other, so that a slow one holds up nothing but
the others.  It is there only while some wait, and does not keep the interpreter from ending.

There is no lock: a signal handler may ask for a callback in the middle of asking for one.
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
        #: What to call, and with what.
        self._due: deque[tuple[Callback, Any]] = deque()
        #: Whose thread calls: whoever started it put it in, and it goes with the thread.
        self._caller: dict[str, object] = {}
        self._closed = False

    def call(self, callback: Callback, what: Any) -> None:
        """Call ``callback(what)`` soon; what it raises is logged.

        When no thread can be started, it is called with the next one.
        """
        self._due.append((callback, what))
        if self._closed:
            self._due.clear()
        elif not self._caller:
            try:
                self._start()
            except RuntimeError as error:
                logger.error("a callback of %r waits: %s", what, error)

    def _start(self) -> None:
        me = object()
        thread = threading.Thread(target=self._run, args=(me,), name=self._name, daemon=True)
        try:
            if self._caller.setdefault("thread", me) is me:
                thread.start()
        except BaseException:
            if thread.ident is None and self._caller.get("thread") is me:
                self._caller.clear()
            raise

    def close(self) -> None:
        """Call nothing any more; what runs is not waited for."""
        self._closed = True
        self._due.clear()

    def _run(self, me: object) -> None:
        while self._caller.setdefault("thread", me) is me:
            self._call_all()
            self._caller.clear()
            if not self._due:  # who asks from now on starts a thread
                return

    def _call_all(self) -> None:
        while True:
            try:
                callback, what = self._due.popleft()
            except IndexError:
                return
            try:
                callback(what)
            except BaseException:  # also of `sys.exit`: others wait, too
                logger.exception("a callback of %r raised; it is called once", what)
            del callback, what
