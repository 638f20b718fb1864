"""Log lines of managers and launchers: `DSM_LOG`, and lines that may come too often.

Owns the handler of Python's `logging` below the logger ``dsm``, and the counts of `limited`.  Nothing is
configured when this is imported: a program that uses dsm has a logging of its own.

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
from collections.abc import Callable, Hashable, Mapping

from dsm.config import log_options
from dsm.errors import UsageError

#: Lines of one key that are written before the rest is only counted, and for how long.
FIRST_LINES = 5
PERIOD_S = 10.0
#: Keys that are counted at the same time.
MAX_KEYS = 256

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


# -- lines that may come too often -----------------------------------------------------------------------


class _Count:
    """Lines of one key since `began`."""

    __slots__ = ("began", "level", "lines", "name")

    def __init__(self, began: float, key: Hashable, level: int) -> None:
        self.began = began
        self.level = level
        self.lines = 0
        #: What the summary calls them.
        self.name = key[0] if isinstance(key, tuple) and key else key


_counts: dict[Hashable, _Count] = {}


def limited(key: Hashable, message: str, *arguments: object, level: int = logging.WARNING) -> None:
    """Log a line that a stranger can provoke: the first few of a key, then only how many there were.

    Parameters
    ----------
    key
        What belongs together: a short text, or a tuple that begins with one, which the summary shows.
    message, arguments
        As of `logging.Logger.log`.
    level
        Level of the line and of the summary.

    Notes
    -----
    The summary comes with the next line of that key after `PERIOD_S`, or from `flush_limited`, which whoever
    has a timer calls now and then and at the end.
    """
    now = time.monotonic()
    count = _counts.get(key)
    if count is not None and now - count.began >= PERIOD_S:
        _summarize(count, now)
        count = None
    if count is None:
        if len(_counts) >= MAX_KEYS:
            flush_limited(everything=True)
        count = _counts[key] = _Count(now, key, level)
    count.lines += 1
    if count.lines <= FIRST_LINES:
        logger.log(level, message, *arguments)


def flush_limited(everything: bool = False) -> None:
    """Write the summaries that are due, or all; keys that were quiet since are forgotten."""
    now = time.monotonic()
    for key, count in list(_counts.items()):
        if everything or now - count.began >= PERIOD_S:
            del _counts[key]
            _summarize(count, now)


def _summarize(count: _Count, now: float) -> None:
    if count.lines > FIRST_LINES:
        more = count.lines - FIRST_LINES
        logger.log(count.level, "%s: %d more like these in %.0f s", count.name, more, now - count.began)
