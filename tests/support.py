"""What tests of real processes share: waiting for conditions, and what must not be left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from dsm import proc

#: Processes started during a test carry this in their environment; so do theirs.
TEST_MARK = "DSM_TEST_MARK"
#: The same for the whole session.
SESSION_MARK = "DSM_SESSION_MARK"
#: Seconds within which what is on its way out must be gone.
GONE_S = 5.0


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Return when `condition()` is true; fail when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.005)


def wait_value(look: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> object:
    """Return the first true value of `look()`."""
    found: list[object] = []
    wait_until(lambda: found.append(look()) or found[-1], timeout_s, what or str(look))
    return found[-1]


def processes_marked(name: str, value: str) -> list[int]:
    """Return the living processes, but for this one, that were started with `name` = `value`."""
    return [pid for pid in proc.processes_marked(name, value) if pid != os.getpid()]


def family() -> list[int]:
    """Return the living processes that this test has started, and theirs."""
    return processes_marked(TEST_MARK, os.environ[TEST_MARK])


def managers() -> list[int]:
    """Return the managers that this test has started, real ones or stand-ins."""
    return [pid for pid in family() if "--ready-fd" in proc.command_line(pid)]


def describe(pid: int) -> str:
    """Return ``pid: command line`` for a message."""
    return f"{pid}: {' '.join(proc.command_line(pid))[:200] or '(gone)'}"


def shared_memory_files() -> set[str]:
    """Return what of ours lies in /dev/shm; nothing ever should."""
    return {entry for entry in os.listdir("/dev/shm") if "dsm" in entry}


def waits_in_futex(pid: int) -> bool:
    """Return whether the main thread of process `pid` sleeps in a fault, or in a call to its manager.

    It waits there for a word that it shares with its manager: Python's locks, the interpreter's included, are
    futexes, too, but private ones.
    """
    try:
        number, _, operation, *_ = Path(f"/proc/{pid}/task/{pid}/syscall").read_text().split()
    except (OSError, ValueError):  # it is gone, or runs
        return False
    return number == {"x86_64": "202", "aarch64": "98"}[os.uname().machine] and not int(operation, 16) & 0x80


def state(pid: int) -> str:
    """Return the letter of a process's state: T when it is stopped."""
    return proc.process_state(pid).letter
