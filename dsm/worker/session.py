"""The worker's conversation with the manager of its node, over the node's local socket.

Owns the socket, the numbering of requests and the descriptors that come with answers.  It does not
know what the requests mean, and it has no thread: whoever watches the socket calls `receive`.

Every `call` sends one datagram and waits until the answer of the same number was received.  Several
threads may wait at once, for a call may take long (opening a region that another worker is still
filling).  A call that is interrupted leaves its number behind as abandoned: its late answer is
skipped, its descriptors are closed, and `undo` may name a request that undoes what was done.

What must be done with answers in the order in which they come (mapping regions) is done by `arrived`,
in the thread that calls `receive`.  So is what must not come between two answers (`in_turn`).

There is no lock: a signal handler that comes in here may call whatever it likes, also what waits for that
thread.  Every step that two could want to do is one operation of a dict (`popitem`, `setdefault`).
"""

from __future__ import annotations

import array
import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from dsm import limits
from dsm.errors import AuthenticationError, DSMError, InternalError, LimitError, NodeLostError, error_for
from dsm.wire import control
from dsm.worker import lacking
from dsm.worker.awaited import refuse

R = TypeVar("R")

#: Most descriptors that any answer carries.
MAX_DESCRIPTORS = 4

LOST = "; the node and its arrays are gone: start the program again, or call dsm.attach() for a new node"


class Descriptors:
    """Descriptors received with an answer; those not taken are closed with this object."""

    #: Of an object whose making a signal handler broke off: it has none yet.
    _descriptors: list[int] = []  # noqa: RUF012

    def __init__(self, descriptors: list[int], cut: bool = False) -> None:
        self._descriptors = descriptors
        #: This process had no room for some of them.
        self.cut = cut

    def __len__(self) -> int:
        return len(self._descriptors)

    def take(self, count: int) -> tuple[int, ...]:
        """Return all descriptors, now the caller's; `InternalError` when they are not `count`.

        Raises
        ------
        LimitError
            This process had no room for all of them.
        """
        if len(self._descriptors) != count:
            if self.cut:
                raise LimitError(
                    f"this process has no room for {count} more descriptors: {lacking.descriptors()}"
                )
            raise InternalError(
                f"an answer of the manager carried {len(self)} descriptors instead of {count}"
            )
        taken, self._descriptors = tuple(self._descriptors), []
        return taken

    def close(self) -> None:
        """Close what was not taken."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    __del__ = close


class _Waiting:
    """One call under way."""

    __slots__ = ("_end", "answer", "answered", "arrived", "descriptors", "error", "undo")

    def __init__(
        self, arrived: Callable[[Any, Descriptors], object] | None, undo: Callable[[Any], Any] | None
    ) -> None:
        #: Held until the answer, or the loss of the manager, is known.
        self.answered = threading.Lock()
        self.answered.acquire()
        self.answer: Any = None
        self.descriptors = Descriptors([])
        self.error: Exception | None = None
        self.arrived = arrived
        self.undo = undo
        #: How it ended, once that is settled.
        self._end: dict[str, bool] = {}

    def settle(self, answered: bool) -> bool:
        """Settle whether it ended with an answer or was abandoned; returns what was settled first."""
        return self._end.setdefault("answered", answered)


class Session:
    """A connection to the manager of this node.

    Parameters
    ----------
    connection
        A connected SOCK_SEQPACKET socket; the session owns it from now on.
    address
        Its address, for messages.
    """

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.address = address
        self._socket = connection
        #: Whoever takes a call out of it tells who waits.
        self._waiting: dict[int, _Waiting] = {}
        self._numbers = itertools.count(1)
        self._error: DSMError | None = None

    @property
    def lost(self) -> bool:
        """Whether the manager has gone or this session was closed."""
        return self._error is not None

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    def call(
        self,
        body: Any,
        expect: type[R],
        *,
        arrived: Callable[[R, Descriptors], None] | None = None,
        undo: Callable[[R], Any] | None = None,
    ) -> tuple[R, Descriptors]:
        """Send `body` and wait for its answer.

        Parameters
        ----------
        body
            A request of `dsm.wire.control`.
        expect
            The type of a good answer.
        arrived
            Called with a good answer by the thread that receives it, before any later answer is
            received, also when this call was interrupted.  What it raises, this call raises.
        undo
            Called with a good answer when this call was interrupted; returns a request that undoes it
            (sent without waiting), or None.

        Raises
        ------
        DSMError
            What the manager's `Failed` stands for; `NodeLostError` when it is gone.
        """
        refuse()
        waiting = _Waiting(arrived, undo)
        try:
            if self._ask(body, waiting):
                waiting.answered.acquire()
        except BaseException:
            self._abandon(waiting)
            raise
        if waiting.error is not None:
            raise _again(waiting.error)
        if isinstance(waiting.answer, control.Failed):
            raise error_for(waiting.answer.status, waiting.answer.message)
        if not isinstance(waiting.answer, expect):
            raise InternalError(
                f"the manager answered {type(body).__name__} with {type(waiting.answer).__name__}"
            )
        return waiting.answer, waiting.descriptors

    def _ask(self, body: Any, waiting: _Waiting) -> bool:
        """Send a request; False when this session is over, and nobody will answer."""
        number = next(self._numbers)
        self._waiting[number] = waiting
        if self._error is not None and self._waiting.pop(number, None) is not None:  # `lose` did not see it
            waiting.error = self._error
            return False
        self._send(number, body)
        return True

    def _send(self, number: int, body: Any) -> None:
        data = control.encode(control.Call(number, body))
        if len(data) > limits.MAX_CONTROL_BYTES:
            raise LimitError(
                f"the request {type(body).__name__} has {len(data)} bytes, "
                f"more than {limits.MAX_CONTROL_BYTES}; use a shorter name, dtype or fill"
            )
        try:
            self._socket.send(data)
        except OSError as error:
            self.lose(
                NodeLostError(f"the manager of this node ({self.address}) is gone: {error.strerror}{LOST}")
            )
            assert self._error is not None
            raise _again(self._error) from None  # of whoever closed this session first, perhaps

    def _abandon(self, waiting: _Waiting) -> None:
        """Give up a call: when its answer comes, or is here already, it is undone."""
        if waiting.settle(answered=False):
            self._undo(waiting)

    def _undo(self, waiting: _Waiting) -> None:
        if (
            waiting.undo is not None
            and waiting.answer is not None
            and not isinstance(waiting.answer, control.Failed)
        ):
            request = waiting.undo(waiting.answer)
            if request is not None:
                self.post(request)

    def receive(self) -> bool:
        """Take one datagram that is there; False when there will be none any more."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                limits.MAX_CONTROL_BYTES,
                socket.CMSG_SPACE(MAX_DESCRIPTORS * struct.calcsize("i")),
                socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT,
            )
        except BlockingIOError:
            return True
        except OSError:
            data, ancillary, flags = b"", [], 0
        # What found no room costs its own call, not the session.
        descriptors = Descriptors(_descriptors(ancillary), bool(flags & socket.MSG_CTRUNC))
        if not data:
            self.lose(NodeLostError(f"the manager of this node ({self.address}) is gone{LOST}"))
            return False
        if flags & socket.MSG_TRUNC:
            self.lose(InternalError("an answer of the manager was longer than any may be"))
            return False
        try:
            answer = control.decode_answer(data)
        except msgspec.MsgspecError as error:
            self.lose(InternalError(f"the manager sent what is no answer: {error}"))
            return False
        self._accept(answer, descriptors)
        return True

    def _accept(self, answer: control.Answer, descriptors: Descriptors) -> None:
        waiting = self._waiting.pop(answer.number, None)
        if waiting is None:
            return
        if waiting.arrived is not None and not isinstance(answer.body, control.Failed):
            try:
                waiting.arrived(answer.body, descriptors)
            except Exception as error:
                waiting.error = error
        waiting.answer, waiting.descriptors = answer.body, descriptors
        if waiting.settle(answered=True):
            waiting.answered.release()
        else:
            waiting.descriptors = Descriptors([])
            self._undo(waiting)

    def post(self, body: Any) -> None:
        """Send a request whose answer nobody waits for."""
        self._post(body, None)

    def in_turn(self, work: Callable[[], object]) -> None:
        """Have `work` done by the thread that receives, which maps nothing meanwhile.

        Soon, and not at all when the session ends first.
        """
        self._post(control.ListNodes(), lambda answer, received: work())

    def _post(self, body: Any, arrived: Callable[[Any, Descriptors], object] | None) -> None:
        waiting = _Waiting(arrived, None)
        waiting.settle(answered=False)
        self._ask(body, waiting)

    def lose(self, error: DSMError) -> None:
        """End every call, and all later ones, with `error`."""
        if self._error is None:
            self._error = error
        while True:
            try:
                _, waiting = self._waiting.popitem()
            except KeyError:
                return
            waiting.error = self._error
            if waiting.settle(answered=True):
                waiting.answered.release()

    def close(self) -> None:
        """Close this process's copy of the socket; after `lose`, or in a child of fork."""
        self._socket.close()


def _again(error: Exception) -> Exception:
    """Return a fresh exception like `error`: one that was raised before has a traceback."""
    return type(error)(*error.args) if isinstance(error, DSMError) else error


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def connect(address: str) -> Session:
    """Connect to the manager that listens on `address`.

    Parameters
    ----------
    address
        ``@dsm-<hex>``: a name in the abstract namespace.

    Raises
    ------
    OSError
        When nobody listens there.
    AuthenticationError
        When who listens is not of this user.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.connect("\0" + address.removeprefix("@"))
        _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            raise AuthenticationError(
                f"the manager at {address} belongs to user {uid}, this process to {os.geteuid()}; "
                "unset DSM_NODE, or run both as one user"
            )
        return Session(connection, address)
    except BaseException:
        connection.close()
        raise
