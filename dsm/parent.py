"""The tie between a process and the one that started it, its parent: PR_SET_PDEATHSIG of prctl(2).

The kernel sends a signal when the parent dies, however that comes about.  It needs no step of either, so that
it also reaches who hangs or is stopped: SIGKILL ends a stopped process, and SIGCONT undoes every stop that
was asked for before.

Nothing else does.  To the members of a process group that loses its last tie to its session the kernel sends
SIGHUP and SIGCONT, but only if the group *is* stopped then: with one of its threads still on its way
into the stop it gets nothing, and remains stopped for ever.  The same if its new parent is of its session.

The tie is to the thread that started the process, is not inherited by `fork`, and outlives `exec`, but for
programs that change their user.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2

#: Bound once: between fork and exec nothing should be looked up.
_prctl = ctypes.CDLL(None).prctl


def die_with(parent: int) -> None:
    """Give this process SIGKILL when `parent`, which started it, dies; end it if that has happened."""
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(128 + signal.SIGKILL)


def wake_at_its_death() -> None:
    """Give this process, if it is tied, SIGCONT in place of SIGKILL: it has something to do then."""
    tied = ctypes.c_int()
    _prctl(_PR_GET_PDEATHSIG, ctypes.byref(tied), 0, 0, 0)
    if tied.value:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)
