"""What a check finds, and what several checks need.

Owns the type of a finding.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

OK, NOTE, BAD = "ok", "note", "BAD"


class Finding(NamedTuple):
    """One thing that was looked at."""

    #: `OK`; `NOTE`, a limit that a program may meet; `BAD`, which keeps dsm from working.
    verdict: str
    text: str
    #: The command that mends it, empty when there is nothing to mend, or no command that could.
    mend: str = ""


def command_in(message: str) -> str:
    """Return the last command that an error message names in backquotes; empty when it names none."""
    found: list[str] = re.findall(r"`([^`]+)`", message)
    return found[-1] if found else ""


def read(path: str) -> str:
    """Return what stands in a small file of the kernel's; empty when there is no such file."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def mib(count: int) -> str:
    """Return a number of bytes as MiB or GiB."""
    return f"{count // 2**20} MiB" if count < 10 * 2**30 else f"{count // 2**30} GiB"
