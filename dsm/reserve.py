"""A descriptor in reserve, for who accepts connections.

When the system gives no descriptors any more, one connection can be taken with it all the same, and whoever
asks for what cannot be given is told so and does not wait (libev's documentation, "The special problem of
accept()ing when you can't").
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

#: Seconds for which who has neither a descriptor nor one in reserve does not look at a listener again.
PAUSE_S: Final = 1.0


class Reserve:
    """One descriptor, while one can be had."""

    def __init__(self) -> None:
        self._fd = -1
        self.hold()

    @property
    def held(self) -> bool:
        """Whether there is one."""
        return self._fd >= 0

    def hold(self) -> None:
        """Take one if there is none; without one to be had: the next time, then."""
        if self._fd < 0:
            with contextlib.suppress(OSError):
                self._fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def spend(self) -> bool:
        """Set it free for something else; whether there was one."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return False
        os.close(fd)
        return True
