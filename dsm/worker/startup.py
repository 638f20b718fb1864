"""Starting the manager of a private node.

Owns how that process comes to be, the wait for its ready line (whose text is `dsm.manager_process`'s) and
the report of what went wrong.  The manager is no child of this process (a shell in between ends at once),
so that ``os.wait`` of a program never meets it, and it lives in a session of its own, so that Ctrl-C does
not reach it.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

from dsm.errors import DSMError, NodeLostError
from dsm.manager_process import MANAGER_ARGUMENTS, Ready, manager_environment, parse_ready

#: Seconds that a manager may take to start (a loaded machine, a cold disk).
START_TIMEOUT_S = 30.0
#: Bytes of its error output that a message shows.
_SHOWN_BYTES = 4000

#: Arguments by which the manager is run; a test puts another program here.
MANAGER = MANAGER_ARGUMENTS


def start_private() -> str:
    """Start a manager that ends with its last worker; return the address of its socket.

    Raises
    ------
    NodeLostError
        When it did not start.
    DSMError
        What the manager itself reported.  Either message has its error output.
    """
    ready, ready_write = os.pipe()
    errors = os.memfd_create("dsm-manager-errors", os.MFD_CLOEXEC)
    try:
        try:
            _spawn(
                [sys.executable, *MANAGER, "--private", "--ready-fd", str(ready_write)], ready_write, errors
            )
        finally:
            os.close(ready_write)
        return wait_ready(ready, START_TIMEOUT_S).socket
    except DSMError as error:
        raise type(error)(f"the manager of a private node did not start: {error}{_output(errors)}") from None
    finally:
        os.close(ready)
        os.close(errors)


def _spawn(command: list[str], ready_fd: int, errors: int) -> None:
    subprocess.run(
        ["/bin/sh", "-c", '"$@" &', "dsm", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=(ready_fd,),
        start_new_session=True, env=manager_environment(), cwd="/", check=True,
    )  # fmt: skip


def wait_ready(descriptor: int, timeout_s: float) -> Ready:
    """Wait for the ready line of a manager at the other end of pipe `descriptor`.

    Raises
    ------
    NodeLostError
        When it ended, or said nothing for `timeout_s` seconds.
    DSMError
        What the manager reported.
    """
    deadline, line = time.monotonic() + timeout_s, b""
    while b"\n" not in line:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise NodeLostError(f"it was not ready within {timeout_s:g} s")
        part = os.read(descriptor, 65536)
        if not part:
            break
        line += part
    return parse_ready(line)


def _output(errors: int) -> str:
    size = os.fstat(errors).st_size
    text = os.pread(errors, _SHOWN_BYTES, max(0, size - _SHOWN_BYTES)).decode(errors="replace").strip()
    return f"; it said:\n{text}" if text else ""
