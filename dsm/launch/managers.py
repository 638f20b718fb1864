"""Coherence managers as child processes: start one, read its ready line, end it.

Owns the launcher's ends of a manager's pipes: the one on which it says that it is ready, the guard by which
it knows what to end when we are gone, its output.  What goes over them is said in `dsm.manager_process`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from dsm.errors import DSMError
from dsm.launch.loop import Loop
from dsm.launch.processes import Process, detach, die_with_parent
from dsm.manager_process import parse_ready

#: What a manager says at most when it is ready.
_READY_BYTES = 1 << 16


class Manager(Process):
    """One manager; `ready` is called when it has said that it serves, or why it cannot."""

    def __init__(
        self,
        loop: Loop,
        command: Sequence[str],
        environment: Mapping[str, str],
        ready: Callable[[Manager], None],
        *,
        capture: bool = True,
    ) -> None:
        #: Its number in the cluster, its local socket (``@dsm-…``) and its TCP address, once ready.
        self.node = -1
        self.socket = ""
        self.listen = ""
        #: Why it cannot serve; empty while it is starting or well.
        self.error = ""
        self._ready = ready
        self._loop = loop
        self._said = b""
        self._ready_fd, ready_end = os.pipe2(os.O_CLOEXEC)
        guard_end, self._guard_fd = os.pipe2(os.O_CLOEXEC)
        pipe = subprocess.PIPE if capture else None
        try:
            popen = subprocess.Popen(
                [*command, "--ready-fd", str(ready_end), "--guard-fd", str(guard_end)],
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                env=dict(environment),
                pass_fds=(ready_end, guard_end),
                process_group=0,
                preexec_fn=die_with_parent(),
            )
        except BaseException:
            os.close(self._ready_fd)
            os.close(self._guard_fd)
            raise
        finally:
            os.close(ready_end)
            os.close(guard_end)
        super().__init__(popen)
        self.outputs = [detach(stream) for stream in (popen.stdout, popen.stderr) if stream]
        loop.add(self._ready_fd, self._read_ready)

    def _read_ready(self) -> None:
        data = os.read(self._ready_fd, _READY_BYTES)
        self._said += data
        if data and b"\n" not in self._said and len(self._said) < _READY_BYTES:
            return
        self._close_ready()
        self._understand()
        self._ready(self)

    def _understand(self) -> None:
        try:
            self.node, self.socket, self.listen = parse_ready(self._said)
        except DSMError as error:
            self.error = str(error)

    def guard(self, group: int) -> None:
        """Have it kill process group `group` when we are gone; it may have ended."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._guard_fd, b"group %d\n" % group)

    def _close_ready(self) -> None:
        if self._ready_fd >= 0:
            self._loop.remove(self._ready_fd)
            os.close(self._ready_fd)
            self._ready_fd = -1

    def close(self) -> None:
        """Close our ends of its pipes, once it has ended."""
        self._close_ready()
        if self._guard_fd >= 0:
            os.close(self._guard_fd)
            self._guard_fd = -1
