"""Keyboard input for rank 0.

Workers have process groups of their own, and only the foreground group may read a terminal: so the
launcher reads it and passes it on.  Anything else than a terminal (a file, a pipe) is simply handed
to rank 0 as its standard input.
"""

from __future__ import annotations

import os

from dsm.launch.loop import Loop

_READ_BYTES = 4096


class Keyboard:
    """Passes what is typed on terminal `fd` to the pipe `target`, which it owns."""

    def __init__(self, loop: Loop, fd: int, target: int) -> None:
        self._loop = loop
        self._fd = fd
        self._target = target
        self._typed = b""
        os.set_blocking(target, False)
        self.resume()

    def resume(self) -> None:
        """Listen, unless a read would stop us because we are in the background.

        Called again after SIGCONT: the shell may have put us into the foreground.
        """
        if self._target >= 0 and not self._typed:
            self._loop.remove(self._fd)
            if self._foreground():
                self._loop.add(self._fd, self._pump)

    def _foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False  # not our controlling terminal

    def _pump(self) -> None:
        if not self._foreground():
            self._loop.remove(self._fd)
            return
        try:
            self._typed = os.read(self._fd, _READ_BYTES)
        except OSError:
            self._typed = b""
        if self._typed:
            self._pass_on()
        else:
            self.close()

    def _pass_on(self) -> None:
        try:
            written = os.write(self._target, self._typed)
        except BlockingIOError:
            written = 0
        except OSError:
            self.close()  # rank 0 does not read (any more)
            return
        self._typed = self._typed[written:]
        self._loop.remove(self._target)
        if self._typed:
            self._loop.remove(self._fd)
            self._loop.add(self._target, self._pass_on, write=True)
        else:
            self.resume()

    def close(self) -> None:
        """Rank 0 sees the end of its input."""
        if self._target >= 0:
            self._loop.remove(self._fd)
            self._loop.remove(self._target)
            os.close(self._target)
            self._target = -1
