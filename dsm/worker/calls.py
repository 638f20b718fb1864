"""Blocking calls to the manager through the slots of the worker board.

Owns the waiting: in slices, so that Python's signal handlers run (Ctrl-C), with a timeout that is
the caller's, and with a way out that leaves nothing behind.  It does not know what the calls mean.

Whatever ends a wait early (a timeout, Ctrl-C, an exception from a signal handler), the call is
*withdrawn*: `Op.CANCEL` names its slot, and the slot is given back only when it has ended.  A call
that was granted meanwhile is undone (a lock that nobody waits for any more is released).  That work
runs in a thread of its own, where Python raises no KeyboardInterrupt.  What was granted is noted by the
caller (`granted`) before an interruption could lose it.

Python may raise KeyboardInterrupt between any two bytecodes of the main thread.  Where that would
lose a slot, the step is one call into C (`map` drives the function, `extend` keeps its result).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dsm import _native, limits
from dsm.errors import ClosedError, DSMError, LimitError, Status, UsageError, WaitTimeoutError, error_for
from dsm.wire.calls import ACQUIRING, Op
from dsm.worker import awaited

T = TypeVar("T")

#: A wait returns to Python at least this often: a signal may have been delivered to another thread.
_SLICE_NS = 100_000_000
#: How long to wait before another try when every slot is in use.
_RETRY_S = 0.001

#: Threads of a process that may wait in long calls at once: faults, and the calls that end those waits
#: (a lock's release), find the remaining slots.
MAX_LONG_CALLS = limits.SLOTS_PER_WORKER * 3 // 4
#: Long calls under way.
_long: set[_Call] = set()

#: Statuses of a lock that this thread has got.
_GRANTED = (Status.OK, Status.OWNER_DIED)


class _Pins(threading.local):
    """Pins of each thread that keep pages as they are."""

    held = 0


_pins = _Pins()

#: Operation and arguments of a call: op, object, a, b, c.
Request = tuple[int, int, int, int, int]
#: Says what a status and its result mean for the object at hand; None: nothing special.
Meaning = Callable[[int, int], str | None]

_MEANING = {
    Status.CLOSED: "{what}: it was destroyed, or this process has closed its node",
    Status.NODE_LOST: "{what}: the manager of this node is gone; start again, or call dsm.attach()",
    Status.PAGE_LOST: "{what}: the node that had it is gone; create it again",
    Status.PAGE_TIMEOUT: "{what}: a node did not answer in time; the pages are not lost, try again",
    Status.LIMIT: "{what}: a limit was reached; use fewer or larger pages (page_size=)",
    Status.NOT_OWNER: "{what}: this thread does not hold it; the thread that acquired a lock releases it",
    Status.USAGE: "{what}: the manager refused the arguments",
    Status.UNKNOWN_NAME: "{what}: it does not exist (any more)",
    Status.TOO_LATE: "{what}: too late",
}


#: No process lives so long (30 years), and the clock's nanoseconds end at ten times that.
_WITHOUT_END_S = 1e9


def check_timeout(timeout: float | None) -> float | None:
    """Return `timeout` in seconds, None for no end; `UsageError` when it is neither."""
    if timeout is None:
        return None
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise UsageError(f"timeout is {timeout!r}; pass seconds, or None to wait without end") from None
    except OverflowError:
        seconds = math.inf if timeout > 0 else -math.inf
    if math.isnan(seconds) or seconds < 0:
        raise UsageError(f"timeout is {timeout!r}; pass seconds from 0 up, or None to wait without end")
    return None if seconds > _WITHOUT_END_S else seconds


def ask(
    op: Op, number: int, a: int = 0, b: int = 0, c: int = 0, *, what: str, timeout: float | None = None,
    brief: bool = False, granted: Callable[[int], None] | None = None,
    undo: Callable[[int], Request | None] | None = None, meaning: Meaning | None = None,
) -> int:  # fmt: skip
    """Ask the manager and wait for the answer.

    Parameters
    ----------
    op, number, a, b, c
        The call, as `dsm.wire.calls` describes it.
    what
        What is being done to what, for messages.
    timeout
        Seconds, or None.
    brief
        The manager answers at once: an interruption waits for the answer instead of cancelling.
    granted
        Called with the status of a call that was granted.
    undo
        Called with that status when nobody waits any more, maybe after `granted`, in another thread: returns
        the request that undoes the call, or None to keep what was granted.
    meaning
        Explains the statuses that are special to what is asked.

    Returns
    -------
    int
        The result, as the 64 bits that the manager gave.

    Raises
    ------
    WaitTimeoutError
        After `timeout` seconds; the call was withdrawn.
    DSMError
        What the status of the answer stands for.
    """
    if op in ACQUIRING and _pins.held:
        raise UsageError(
            f'{what}: this thread has pinned pages under consistency="release", and might have to be shown '
            "what others wrote there; end the pin first (the with block of node.pin)"
        )
    if not brief:
        awaited.refuse()
    deadline = None if timeout is None else time.monotonic_ns() + int(timeout * 1e9)
    call = _Call((op, number, a, b, c), what, brief)
    try:
        if not brief:
            _long.add(call)
            if len(_long) > MAX_LONG_CALLS:
                raise LimitError(
                    f"{what}: {MAX_LONG_CALLS} threads of this process wait already; let fewer wait at once"
                )
        call.begin()
        if not call.wait(deadline):
            _apart(call.withdraw)
        call.end()
        if granted is not None and call.answer is not None and call.answer[0] in _GRANTED:
            granted(call.answer[0])
    except BaseException:
        _apart(lambda: _undo(call, undo))
        raise
    finally:
        _long.discard(call)
    assert call.answer is not None
    status, result = call.answer
    if status == Status.OK:
        return result
    if status == Status.CANCELLED:
        raise WaitTimeoutError(f"{what}: not done within {timeout} s; the request was withdrawn")
    said = meaning(status, result) if meaning is not None else None
    raise failure(status, what) if said is None else error_for(status, f"{what}: {said}")


def hold_old_pages(more: int) -> None:
    """Count this thread's pins that keep pages as they are: to acquire, it would wait for itself."""
    _pins.held += more


def tell(op: Op, number: int, a: int = 0, b: int = 0, *, what: str) -> None:
    """Tell the manager something that it cannot refuse, and go on at once.

    What this thread asks afterwards is handled after it.
    """
    try:
        while not _native.call_post(op, number, a, b):
            time.sleep(_RETRY_S)  # brief calls and faults end soon
    except OSError as error:
        raise ClosedError(
            f"{what}: this process has closed its node; call dsm.attach() ({error.strerror})"
        ) from None


def forget() -> None:
    """In a child of fork: the calls of the parent's threads are not its own."""
    _long.clear()


def failure(status: int, what: str) -> DSMError:
    """Return the exception for a call that ended with `status`."""
    known = Status(status) if status in set(Status) else Status.INTERNAL
    return error_for(
        status, _MEANING.get(known, "{what}: ended with status " + str(status)).format(what=what)
    )


class _Call:
    """One call and its slot."""

    def __init__(self, request: Request, what: str, brief: bool) -> None:
        self.request = request
        self.what = what
        self.brief = brief
        #: The slot, while it is ours.
        self.slots: list[int] = []
        #: Status and result, once known.
        self.answer: tuple[int, int] | None = None
        #: Held while the call is withdrawn: an interrupted withdrawal goes on in its thread.
        self._withdrawal = threading.Lock()

    def begin(self) -> None:
        """Post the request; its slot is in `slots` before anything can interrupt."""
        while True:
            self.slots.extend(map(_native.lib.dsm_call_begin, *zip(self.request, strict=True)))
            if self.slots[0] >= 0:
                return
            code = -self.slots.pop()
            if code == errno.EAGAIN:  # brief calls and faults end soon
                time.sleep(_RETRY_S)
            elif code != errno.EINTR:
                raise ClosedError(
                    f"{self.what}: this process has closed its node; call dsm.attach() ({os.strerror(code)})"
                )

    def wait(self, deadline: int | None) -> bool:
        """Wait for the answer; False when `deadline` has passed."""
        while self.answer is None:
            left = _SLICE_NS if deadline is None else min(_SLICE_NS, deadline - time.monotonic_ns())
            self.answer = _native.call_wait(self.slots[0], max(0, left))
            if self.answer is None and deadline is not None and time.monotonic_ns() >= deadline:
                return False
        return True

    def end(self) -> None:
        """Give the slot back and forget it, in one step."""
        if self.slots:
            any(map(_native.lib.dsm_call_end, map(self.slots.pop, (0,))))

    def withdraw(self) -> None:
        """End the call, which nobody waits for any more; `answer` then says how it ended."""
        with self._withdrawal:
            if not self.slots or self.slots[0] < 0:
                return
            if not self.brief and not self.wait(0):
                self._cancel()
            self.wait(None)
            self.end()

    def _cancel(self) -> None:
        slot = self.slots[0] % limits.SLOTS_PER_WORKER
        cancel = _Call((Op.CANCEL, self.request[1], slot, 0, 0), f"withdrawing {self.what}", True)
        with contextlib.suppress(ClosedError):  # then every wait ends by itself
            cancel.begin()
            cancel.wait(None)
            cancel.end()


def _undo(call: _Call, undo: Callable[[int], Request | None] | None) -> None:
    call.withdraw()
    if undo is not None and call.answer is not None and call.answer[0] in _GRANTED:
        request = undo(call.answer[0])
        if request is not None:
            op, number, a, b, c = request
            ask(Op(op), number, a, b, c, what=f"undoing {call.what}", brief=True)


def _apart(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own and return what it returns.

    When this wait is interrupted the thread goes on to its end.
    """
    outcome: list[T] = []
    failed: list[BaseException] = []

    ended = threading.Lock()
    ended.acquire()

    def run() -> None:
        awaited.note()
        try:
            outcome.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            ended.release()

    try:
        threading.Thread(target=run, name="dsm-withdraw").start()
    except RuntimeError:  # the interpreter is ending
        return work()
    ended.acquire()  # not by `join`: it holds a lock of threading's, which a signal handler may want, too
    if failed:
        raise failed[0]
    return outcome[0]
