"""A manager as a process: how it is started, and how it says that it serves.

Owns the contract between ``python -m dsm.manager`` and whoever starts one: a worker without a node, a
launcher, a test.  It starts nothing itself; each of them has its own way to wait and to end.

* the command line: `manager_command` and options, among them ``--ready-fd`` (where the ready line goes) and
  ``--guard-fd``, the read end of a pipe of the starter's.  Lines ``group N`` name process groups; when the
  pipe ends, however that came about, the manager kills them all and ends;
* the starter's death: a launcher ties its managers to its life (`dsm.parent`), so that SIGKILL reaches those
  that are starting, stopped or not.  One that is ready may have groups to kill: it asks for SIGCONT instead,
  which lets it see that the pipe has ended also when it was stopped;
* the environment: `manager_environment`, with the cluster's secret; SIGTERM ends it cleanly;
* the ready line, one line of JSON: ``{"node", "socket", "listen", "pid"}``, or ``{"error", "status"}``.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from dsm.errors import DSMError, NodeLostError, error_for, status_of

#: Arguments of the interpreter that runs a manager.  ``-P``: a queue.py in the current directory must not
#: stand in for the library's.
MANAGER_ARGUMENTS = ("-P", "-m", "dsm.manager")
#: Directory that holds this package: its processes import this very one.
PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])
#: Where a process belongs is said anew to each; what it inherited may be another job's.
_PLACE = ("DSM_NODE", "DSM_RANK", "DSM_SIZE", "DSM_SECRET", "DSM_SECRET_FILE")


class Ready(NamedTuple):
    """What a manager says that serves."""

    #: Its number in the cluster.
    node: int
    #: Its local socket, ``@dsm-…``.
    socket: str
    #: ``host:port`` at which it accepts other nodes; empty when it accepts none.
    listen: str


def manager_command() -> list[str]:
    """Return the command that starts a manager, without its options."""
    return [sys.executable, *MANAGER_ARGUMENTS]


def manager_environment(secret: str | None = None) -> dict[str, str]:
    """Return the environment of a manager: ours, with this secret, and nothing of another job's."""
    environment = {key: value for key, value in os.environ.items() if key not in _PLACE}
    if secret is not None:
        environment["DSM_SECRET"] = secret
    if PACKAGE_ROOT not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{known}{os.pathsep}{PACKAGE_ROOT}" if known else PACKAGE_ROOT
    return environment


def ready_line(ready: Ready) -> bytes:
    """Return the line by which this process, a manager, says that it serves."""
    return _line({**ready._asdict(), "listen": ready.listen or None, "pid": os.getpid()})


def refusal_line(error: Exception) -> bytes:
    """Return the line by which a manager says why it cannot serve."""
    return _line({"error": str(error), "status": int(status_of(error))})


def _line(said: dict[str, object]) -> bytes:
    return json.dumps(said).encode() + b"\n"


def parse_ready(line: bytes) -> Ready:
    """Return what a manager said, all of it up to the end of its line or of the pipe.

    Raises
    ------
    NodeLostError
        It ended without a word, or said what is no ready line.
    DSMError
        What it reported, with the class it had there.
    """
    if not line:
        raise NodeLostError("it ended before it was ready")
    try:
        said = json.loads(line)
        refusal = _refusal(said)
        if refusal is None:
            return Ready(int(said["node"]), str(said["socket"]), str(said["listen"] or ""))
    except (ValueError, KeyError, TypeError):
        raise NodeLostError(f"its ready line cannot be understood: {line[:200]!r}") from None
    raise refusal


def _refusal(said: dict[str, object]) -> DSMError | None:
    return error_for(int(str(said["status"])), str(said["error"])) if "error" in said else None
