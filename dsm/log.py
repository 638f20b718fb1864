"""Log lines of managers and launchers, as `DSM_LOG` says.

Owns the handler of Python's `logging` below the logger ``dsm``.  Nothing is configured when this is imported:
a program that uses dsm has a logging of its own.

``DSM_LOG=level`` or ``DSM_LOG=level:/path/file``; ``{pid}`` in the path stands for the process's number.
Without a path, lines go to standard error; without the variable, warnings do.  Each line is written with one
system call at the end of the file, so that managers may share one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping

from dsm.config import log_options
from dsm.errors import UsageError

logger = logging.getLogger("dsm")

#: Who writes: ``node 0``, once that is known.
_identity = ""


class _Formatter(logging.Formatter):
    """``dsm: node 0: text``; with a time, the process and the level when somebody asked for a log."""

    def __init__(self, brief: bool) -> None:
        super().__init__()
        self._brief = brief

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        who = f"{_identity}: " if _identity else ""
        if self._brief:
            return f"dsm: {who}{text}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        head = f"{stamp}.{int(record.msecs):03d} {record.levelname.lower():<8} {record.process}"
        return f"{head} dsm: {who}{text}"


class _File(logging.Handler):
    """Appends to a file, a line a system call."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._fd, (self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except OSError:  # the disk is full: serving goes before logging
            return

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()


class _Written(logging.Handler):
    """Gives each line to a function."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record) + "\n")


def _to_stderr(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
        sys.stderr.write(line)
        sys.stderr.flush()


def configure(environ: Mapping[str, str]) -> None:
    """Begin to log as ``DSM_LOG`` says.

    Raises
    ------
    UsageError
        The level or the path is not one, or the file cannot be written.
    """
    level, path = log_options(environ)
    handler: logging.Handler
    if path:
        path = path.replace("{pid}", str(os.getpid()))
        try:
            handler = _File(path)
        except OSError as error:
            raise UsageError(
                f"DSM_LOG: cannot write the log {path}: {error.strerror}; name another file"
            ) from None
    else:
        handler = _Written(_to_stderr)
    handler.setFormatter(_Formatter(brief=not environ.get("DSM_LOG")))
    _install(handler)
    logger.setLevel(level)
    logger.propagate = False


def _install(handler: logging.Handler) -> None:
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)


def to_file() -> bool:
    """Whether lines go to a file, where nobody sees them now."""
    return any(isinstance(handler, _File) for handler in logger.handlers)


def redirect(write: Callable[[str], None]) -> None:
    """Give lines for standard error to `write`, which keeps them apart from others that go there."""
    if not to_file() and logger.handlers:
        handler = _Written(write)
        handler.setFormatter(logger.handlers[0].formatter)
        _install(handler)


def identify(who: str) -> None:
    """Let every line say who writes it."""
    global _identity
    _identity = who
