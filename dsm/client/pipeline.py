"""Many requests on their way at once: one round trip for all.

Owns a client's `Pipeline`: what is gathered, in which pieces it goes, and who gets which answer.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dsm.client.lease import RemoteLease, contiguous
from dsm.errors import DSMError, UsageError
from dsm.wire.leases import Op

if TYPE_CHECKING:
    from dsm.client.calls import Buffer
    from dsm.client.connection import Connection
    from dsm.client.exchange import Asked

T = TypeVar("T")

#: Requests, or replies, of one exchange; what is larger goes by itself.
_BATCH_BYTES = 1024 * 1024
_GET = int(Op.GET)
_SET = int(Op.SET)


class Result(Generic[T]):
    """What a request in a pipeline brings."""

    __slots__ = ("_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def result(self) -> T:
        """Return the answer, or raise its error.

        Raises
        ------
        UsageError
            The pipeline has not been sent: its ``with`` block is not over.
        """
        if not self.done:
            raise UsageError("this request is not sent yet; leave the pipeline's with block first")
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value


class Pipeline:
    """Gathers requests; at the end of its ``with`` block they are sent together.

    Then every `Result` has its answer.  When requests fail the others are done all the same, and the first
    error is raised at the end of the block.

    Examples
    --------
    >>> with client.pipeline() as pipeline:  # doctest: +SKIP
    ...     results = [pipeline.get(lease, 4096 * i, 4096) for i in range(64)]
    >>> pages = [each.result() for each in results]  # doctest: +SKIP
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: Op, token, offset, count, data; and who gets the answer.
        self._asked: list[Asked] = []
        self._results: list[Result[Any]] = []

    def get(self, lease: RemoteLease, offset: int = 0, n: int | None = None) -> Result[bytes]:
        """Ask for bytes, as `RemoteLease.get`."""
        _check(lease)
        if type(offset) is not int or type(n) is not int or offset < 0 or n < 0 or offset + n > lease._nbytes:
            offset, n = lease._range(offset, n)
        result: Result[bytes] = Result()
        self._asked.append((_GET, lease._shown, offset, n, b""))
        self._results.append(result)
        return result

    def set(self, lease: RemoteLease, data: Buffer, offset: int = 0) -> Result[None]:
        """Write bytes, as `RemoteLease.set`; they must not change before the block ends."""
        _check(lease)
        if type(data) is not bytes:
            data = contiguous(data)
        offset, _ = lease._range(offset, len(data))
        lease._need_write_key("written to")
        result: Result[None] = Result()
        self._asked.append((_SET, lease._shown, offset, len(data), data))
        self._results.append(result)
        return result

    def __len__(self) -> int:
        return len(self._asked)

    def execute(self) -> None:
        """Send what was gathered and wait for all answers; the pipeline is empty then.

        Raises
        ------
        DSMError
            The first error of a request, after all were done; or the connection broke.
        """
        asked, results = self._asked, self._results
        self._asked, self._results = [], []
        first: BaseException | None = None
        start = 0
        while start < len(asked):
            end, out, back = start, 0, 0
            while end < len(asked):
                op, _, _, count, _ = asked[end]
                out += 64 + (count if op == _SET else 0)
                back += 32 + (count if op == _GET else 0)
                if end > start and (out > _BATCH_BYTES or back > _BATCH_BYTES):
                    break
                end += 1
            try:
                self._exchange(asked[start:end], results[start:end])
            except BaseException as error:  # also what a signal's handler raises
                for result in results[start:]:
                    if not result.done:
                        result._error, result.done = error, True
                raise
            start = end
        for result in results:
            first = first or result._error
        if first is not None:
            raise first

    def _exchange(self, asked: list[Asked], results: list[Result[Any]]) -> None:
        connection = self._connection
        if len(asked) == 1:
            op, token, offset, count, data = asked[0]
            result = results[0]
            try:
                if op == _GET:
                    result._value = connection.get(token, offset, count)
                else:
                    connection.set(token, offset, data)
            except DSMError as error:
                result._error = error
            result.done = True
            return
        for result, answer in zip(results, connection.exchange(asked), strict=True):
            if isinstance(answer, BaseException):
                result._error = answer
            else:
                result._value = answer
            result.done = True

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.execute()


def _check(lease: Any) -> None:
    if type(lease) is not RemoteLease:
        raise UsageError(
            f"lease is {type(lease).__name__}; pass what client.lease() or client.open() returned: tokens, "
            "also those of mapped leases, are opened first"
        )
