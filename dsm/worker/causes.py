"""What is said when another process is the cause of the end of a call: who it was, and what to do.

Owns the words.  The cause comes as the call's result, from the home of the object (`dsm.wire.calls.Cause`).
"""

from __future__ import annotations

from dsm.errors import Status
from dsm.types import SyncObject
from dsm.wire.calls import NO_RANK, UNASKED, UNSEEN, Cause, cause_of


def _rank(number: int) -> str:
    return "a worker" if number == NO_RANK else f"rank {number}"


def explain(described: SyncObject, status: int, result: int) -> str | None:
    """Say what the end of a call means for this object, and who is the cause of it."""
    if status == Status.PAGE_TIMEOUT:
        return _late(described, result)
    cause, node, number = cause_of(result)
    if cause is Cause.HOME_DIED or status == Status.PAGE_LOST:
        return f"it was kept by node {described.home}, which is gone; use another name"
    if described.kind == "semaphore" and status == Status.NOT_OWNER:
        return "this process has not taken so many units; a bounded semaphore's are released by who took them"
    if described.kind == "semaphore" and status == Status.USAGE:
        return "so many units it never has"
    if status == Status.OWNER_DIED:
        who = f"node {node} died, whose worker held it" if cause is Cause.NODE_DIED else "its owner died"
        if cause in (Cause.DIED, Cause.LEFT):
            how = "died while it held it" if cause is Cause.DIED else "ended without releasing it"
            who = f"{_rank(number)} on node {node} {how}"
        alone = ", alone" if described.kind == "rwlock" else ""
        return (
            f"{who}. This thread holds it now{alone}: repair what it protects and call consistent(), or call "
            "release() for the next one to be told"
        )
    if status != Status.BROKEN:
        return None
    if cause is Cause.RANK_MISSING:
        return f"rank {number}, which was on node {node}, has ended; nobody can meet here without it"
    happened = {
        Cause.DIED: f"{_rank(number)} on node {node} died",
        Cause.LEFT: f"{_rank(number)} on node {node} ended while it waited",
        Cause.NODE_DIED: f"node {node} died, and a party with it",
        Cause.GAVE_UP: f"a thread of worker {number} on node {node} gave up (timeout or interruption)",
        Cause.RESET: f"worker {number} on node {node} has reset it",
        Cause.ABORTED: f"worker {number} on node {node} has broken it",
    }.get(cause, "another party left before it was complete")
    return f"{happened}; when all parties have been told they may meet again"


def _late(described: SyncObject, stage: int) -> str:
    if stage == UNASKED:
        return (
            "what this node has written did not get to its homes in time: one of them, or a process here, is "
            "stopped or cut off (see `dsm status`); it has not been done: try again, or raise "
            "DSM_PAGE_TIMEOUT"
        )
    if stage == UNSEEN:
        return (
            "it has been done, but this node could not give old copies of pages up in time: a process here "
            "is stopped or pins them, or a home is stopped or cut off (see `dsm status`)"
        )
    return (
        f"node {described.home}, which keeps it, did not answer in time (see `dsm status`): it may have "
        "been done, or be done yet; look before you do it again, or raise DSM_PAGE_TIMEOUT"
    )
