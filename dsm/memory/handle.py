"""What the holder of a lease has of it, however its bytes are reached: id, keys, size.

Pure: it knows neither time nor memory.  Leases that are mapped (`dsm.worker.lease`) and those of a server
(`dsm.client.lease`, `dsm.client.async_lease`) build on it.
"""

from __future__ import annotations

import operator
from typing import Any

from dsm.errors import NotPermittedError, UsageError
from dsm.memory.token import show_id, token_of


class LeaseHandle:
    """A lease's id, the keys with which it was taken or opened, and its size.

    Parameters
    ----------
    identity
        Its id.
    key, read_key
        Those of the two that the holder has, at least one.
    nbytes
        Its size.
    """

    def __init__(self, identity: bytes, key: bytes | None, read_key: bytes | None, nbytes: int) -> None:
        self._id = identity
        self._key = key
        self._read_key = read_key
        self._nbytes = nbytes

    @property
    def key(self) -> bytes | None:
        """The key that allows to write, renew and release; None when this handle has only the other one."""
        return self._key

    @property
    def read_key(self) -> bytes | None:
        """The key that allows to read; None when the handle was opened with the other one."""
        return self._read_key

    @property
    def token(self) -> str | None:
        """Id and write key as one text, for who may write; None without that key."""
        return None if self._key is None else token_of(self._id, self._key)

    @property
    def read_token(self) -> str | None:
        """Id and read key as one text, for who may only read; None without that key."""
        return None if self._read_key is None else token_of(self._id, self._read_key)

    @property
    def nbytes(self) -> int:
        """Size in bytes, as it was asked for."""
        return self._nbytes

    @property
    def writable(self) -> bool:
        """Whether this handle may write, renew and release."""
        return self._key is not None

    @property
    def expires_in(self) -> float:
        """Seconds that it lasts; 0.0 when it has ended."""
        raise NotImplementedError

    @property
    def expired(self) -> bool:
        """Whether it has ended, as far as this handle knows."""
        return self.expires_in == 0.0

    @property
    def _best_key(self) -> bytes:
        """The key that allows most of those that this handle has."""
        key = self._key if self._key is not None else self._read_key
        assert key is not None
        return key

    def _need_write_key(self, done: str) -> None:
        if self._key is None:
            raise NotPermittedError(
                f"lease {show_id(self._id)} cannot be {done}: it was opened with its read key, and that "
                "needs its write key; open it with its token (Lease.token), not its read token"
            )

    def _range(self, offset: Any, n: Any) -> tuple[int, int]:
        """Return the bytes that are meant, the first and how many; None as `n`: all from `offset` on."""
        try:
            if isinstance(offset, bool) or isinstance(n, bool):
                raise TypeError
            first = operator.index(offset)
            count = max(0, self._nbytes - first) if n is None else operator.index(n)
        except TypeError:
            first = count = -1
        if first < 0 or count < 0 or first + count > self._nbytes:
            raise UsageError(
                f"{'all' if n is None else _shown(n)} bytes at offset {_shown(offset)} do not lie in {self!r}"
            )
        return first, count


def _shown(value: Any) -> str:
    """Return what was passed as a number of bytes, shortly."""
    if isinstance(value, int) and abs(value) < 1 << 70:
        return repr(value)
    return f"<{type(value).__name__}>"
