"""Events as users hold them."""

from __future__ import annotations

from typing import Any

from dsm.errors import WaitTimeoutError
from dsm.wire.calls import Op
from dsm.worker import calls
from dsm.worker.synchronization.handles import Handle
from dsm.worker.synchronization.objects import reopen
from dsm.worker.synchronization.owners import owner_token


class Event(Handle):
    """A flag of the cluster that threads wait for, as `threading.Event`; made by `Node.event`.

    Whatever a thread did before `set` is seen by who finds it set.  Nobody is told when the process that was
    to set it has died: give `wait` a timeout where that may happen.
    """

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
                Op.EVENT_WAIT, self._number, owner_token(), what=f"waiting for {self._what}",
                timeout=calls.check_timeout(timeout), meaning=self._meaning,
            )  # fmt: skip
        except WaitTimeoutError:
            return False
        return True

    def _ask(self, op: Op, doing: str) -> int:
        what = f"{doing} {self._what}"
        number, meaning = self._number, self._meaning
        return calls.ask(op, number, owner_token(), what=what, brief=True, meaning=meaning)

    def __repr__(self) -> str:
        return f"<dsm.Event {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, ("event", self.name)
