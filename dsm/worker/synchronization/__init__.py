"""Synchronization objects as users hold them; who gets what, in which order, is decided by their homes.

Owns nothing itself: `objects` knows which this process has opened, `owners` who holds what, `handles` what
all handles have, `numbers` what callers may pass, `robust` what it is to hold something whose last owner may
have died; then a file for each kind.
"""

from dsm.worker.synchronization.atomics import Atomic
from dsm.worker.synchronization.conditions import Condition
from dsm.worker.synchronization.events import Event
from dsm.worker.synchronization.locks import Lock
from dsm.worker.synchronization.rwlocks import RWLock
from dsm.worker.synchronization.semaphores import Semaphore

__all__ = ["Atomic", "Condition", "Event", "Lock", "RWLock", "Semaphore"]
