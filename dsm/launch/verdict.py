"""Which failure was the first cause: pure.

When a worker fails, others soon fail because of it (a barrier breaks, a page is lost).  Those are
mostly later, but not always: a process prints its traceback, leaves its barriers, and only then, in
its own time, ends.  So a failure whose traceback ends in one of dsm's *peer* errors accuses another
process, and is the origin only if nobody else turns up.
"""

from __future__ import annotations

import re

from dsm import errors

#: Lines of a traceback that are printed again at the end.
MAX_LINES = 100


def _names(cls: type[errors.DSMError]) -> set[str]:
    found = {cls.__name__}
    for sub in cls.__subclasses__():
        found |= _names(sub)
    return found


_PEERS = "|".join(sorted(_names(errors.PeerError)))
_ACCUSES = re.compile(rf"^dsm\.(?:\w+\.)*(?:{_PEERS})(?::|$)")
_TRACEBACK = re.compile(r"^\s*\+?\s*(?:Exception Group )?Traceback \(most recent call last\):")


def accuses_a_peer(stderr: bytes) -> bool:
    """Return whether the last exception of `stderr` says that another process failed."""
    for line in reversed(stderr.decode("utf-8", "replace").splitlines()):
        if line and not line[0].isspace():
            return bool(_ACCUSES.match(line))
    return False


def last_words(stderr: bytes) -> str:
    """Return the end of `stderr` from its first traceback on, at most `MAX_LINES` lines."""
    lines = stderr.decode("utf-8", "backslashreplace").rstrip().splitlines()[-MAX_LINES:]
    for number, line in enumerate(lines):
        if _TRACEBACK.match(line):
            return "\n".join(lines[number:])
    return "\n".join(lines)
