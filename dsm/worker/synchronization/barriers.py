"""Barriers as users meet at them."""

from __future__ import annotations

import functools
from typing import Any

from dsm.errors import UsageError
from dsm.types import JOB_BARRIER, MAX_PARTIES, SyncObject
from dsm.wire import control
from dsm.wire.calls import Op
from dsm.worker import calls
from dsm.worker.causes import explain
from dsm.worker.synchronization.numbers import number_of
from dsm.worker.synchronization.objects import ObjectTable
from dsm.worker.synchronization.owners import owner_token


def find(
    objects: ObjectTable, name: str | None, parties: Any, attached: control.Attached
) -> tuple[SyncObject, bool]:
    """Return the barrier of that name (None: the job's), and whether its parties are the job's ranks.

    `parties` None: all workers of the job.
    """
    of_ranks = attached.launched and parties is None
    if parties is None:
        if not attached.launched:
            raise UsageError(
                "barrier() needs parties= here: without `dsm run` nobody knows how many workers will come"
            )
        parties = attached.size
    count = number_of(parties, "parties", 1, MAX_PARTIES)
    described = objects.get("barrier", JOB_BARRIER if name is None else name, count)
    if described.value != count:
        raise UsageError(
            f"barrier {described.name!r} has {described.value} parties, not {count}; "
            "all must give the same number, or choose another name"
        )
    job = attached.launched and described.name == JOB_BARRIER and count == attached.size
    return described, of_ranks or job


def wait_at(described: SyncObject, of_ranks: bool, timeout: float | None) -> int:
    """Wait at a barrier; returns the index of arrival."""
    what = f"waiting at barrier {described.name!r} of {described.value} parties"
    return calls.ask(
        Op.BARRIER_WAIT, described.object, owner_token(), int(of_ranks), what=what, timeout=timeout,
        meaning=functools.partial(explain, described),
    )  # fmt: skip


def reset(described: SyncObject) -> None:
    """Make a barrier new."""
    calls.ask(
        Op.BARRIER_RESET, described.object, owner_token(), what=f"resetting barrier {described.name!r}",
        brief=True, meaning=functools.partial(explain, described),
    )  # fmt: skip
