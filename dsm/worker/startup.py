"""Starting the manager of a private node.

Owns the command line, the wait for its first line and the report of what went wrong.  The manager is
no child of this process (a shell in between ends at once), so that ``os.wait`` of a program never
meets it, and it lives in a session of its own, so that Ctrl-C does not reach it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from dsm.errors import NodeLostError, error_for

#: Seconds that a manager may take to start (a loaded machine, a cold disk).
START_TIMEOUT_S = 30.0
#: Bytes of its error output that a message shows.
_SHOWN_BYTES = 4000

#: Arguments by which the manager is run; a test puts another program here.
MANAGER = ("-P", "-m", "dsm.manager")


def start_private() -> str:
    """Start a manager that ends with its last worker; return the address of its socket.

    Raises
    ------
    NodeLostError
        When it did not start; the message has its error output.
    DSMError
        What the manager itself reported.
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
        line = _first_line(ready, errors)
        return _address(line, errors)
    finally:
        os.close(ready)
        os.close(errors)


def _spawn(command: list[str], ready_fd: int, errors: int) -> None:
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{known}{os.pathsep}{root}" if known else root
    subprocess.run(
        ["/bin/sh", "-c", '"$@" &', "dsm", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=(ready_fd,),
        start_new_session=True, env=environment, cwd="/", check=True,
    )  # fmt: skip


def _first_line(ready: int, errors: int) -> bytes:
    """Return what the manager wrote before it closed its end."""
    deadline, data = time.monotonic() + START_TIMEOUT_S, b""
    while b"\n" not in data:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([ready], [], [], left)[0]:
            raise NodeLostError(
                f"the manager of a private node was not ready within {START_TIMEOUT_S:.0f} s{_output(errors)}"
            )
        part = os.read(ready, 65536)
        if not part:
            break
        data += part
    return data


def _address(line: bytes, errors: int) -> str:
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        raise NodeLostError(
            f"the manager of a private node ended before it was ready{_output(errors)}"
        ) from None
    if "error" in said:
        raise error_for(
            int(said.get("status", 0)), f"the manager of a private node did not start: {said['error']}"
        )
    return str(said["socket"])


def _output(errors: int) -> str:
    size = os.fstat(errors).st_size
    text = os.pread(errors, _SHOWN_BYTES, max(0, size - _SHOWN_BYTES)).decode(errors="replace").strip()
    return f"; it said:\n{text}" if text else "; it said nothing"
