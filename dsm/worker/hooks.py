"""Places of the standard library where dsm listens, once a process has attached.

Owns the wrappers around them: SIGSEGV stays ours when somebody installs another handler (the other
one is called for faults that are not in our regions), and an OSError that a system call on an absent
page ended in explains itself.  They are installed once and call what was there before.
"""

from __future__ import annotations

import errno
import faulthandler
import functools
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from dsm import _native

F = TypeVar("F", bound=Callable[..., Any])

NOTE = (
    "dsm: the kernel does not fetch absent pages for a system call (read, write, recv, ...). If the buffer "
    "was an array of a dsm region, hold its pages here meanwhile:  with node.pin(array): ..."
)

#: What `ndarray.tofile` (hence `numpy.save`) says when its write ended early; it carries no errno.
_SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")

_installed = False


def install() -> None:
    """Install every hook of this module; once in a process."""
    global _installed
    if _installed:
        return
    _installed = True
    faulthandler.enable = _then_check(faulthandler.enable)
    faulthandler.disable = _then_check(faulthandler.disable)
    signal.signal = _then_check(signal.signal, only=signal.SIGSEGV)
    sys.excepthook = _explaining(sys.excepthook)
    threading.excepthook = _explaining_thread(threading.excepthook)


def _then_check(function: F, only: int | None = None) -> F:
    """Return `function`, followed by putting our handler of SIGSEGV on top."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            if only is None or (args and args[0] == only):
                _native.handler_check()

    return wrapper  # type: ignore[return-value]


def explain(error: BaseException | None) -> None:
    """Add a note to an error that a system call on an absent page may have ended in."""
    if not isinstance(error, OSError) or NOTE in getattr(error, "__notes__", ()):
        return
    if error.errno == errno.EFAULT or (error.errno is None and _SHORT_WRITE.match(str(error))):
        error.add_note(NOTE)


def _explaining(previous: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(previous)
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        explain(error)
        return previous(kind, error, trace)

    return hook


def _explaining_thread(previous: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(previous)
    def hook(args: threading.ExceptHookArgs) -> Any:
        explain(args.exc_value)
        return previous(args)

    return hook
