"""Events as users hold them."""

from __future__ import annotations

import functools
from typing import Any

from dsm.errors import WaitTimeoutError
from dsm.types import SyncObject
from dsm.wire.calls import Op
from dsm.worker import calls
from dsm.worker.causes import explain
from dsm.worker.synchronization.objects import reopen
from dsm.worker.synchronization.owners import owner_token


class Event:
    """A flag of the cluster that threads wait for, as `threading.Event`; made by `Node.event`.

    Whatever a thread did before `set` is seen by who finds it set.  Nobody is told when the process that was
    to set it has died: give `wait` a timeout where that may happen.
    """

    def __init__(self, described: SyncObject) -> None:
        self._described = described
        self._meaning = functools.partial(explain, described)

    @property
    def name(self) -> str:
        """Its name."""
        return self._described.name

    def is_set(self) -> bool:
        """Whether it is set."""
        return bool(self._ask(Op.EVENT_IS_SET, "looking at"))

    def set(self) -> None:
        """Set it: all who wait go on, and nobody waits until it is cleared."""
        self._ask(Op.EVENT_SET, "setting")

    def clear(self) -> None:
        """Clear it: who waits from now on, waits until it is set again."""
        self._ask(Op.EVENT_CLEAR, "clearing")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set.

        Parameters
        ----------
        timeout
            Seconds to wait; 0 looks once; None (default) waits without end.

        Returns
        -------
        bool
            True when it was set, False when the time was over.

        Raises
        ------
        PageLostError
            When the node that kept the event has died.
        """
        try:
            calls.ask(
                Op.EVENT_WAIT, self._described.object, owner_token(), what=f"waiting for event {self.name!r}",
                timeout=calls.check_timeout(timeout), meaning=self._meaning,
            )  # fmt: skip
        except WaitTimeoutError:
            return False
        return True

    def _ask(self, op: Op, doing: str) -> int:
        what = f"{doing} event {self.name!r}"
        number, meaning = self._described.object, self._meaning
        return calls.ask(op, number, owner_token(), what=what, brief=True, meaning=meaning)

    def __repr__(self) -> str:
        return f"<dsm.Event {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, ("event", self.name)
