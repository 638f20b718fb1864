"""Workers as child processes: one process group each, tied to the life of the launcher.

The group is that of a session without a terminal: a worker that opens ``/dev/tty`` gets an error, not
a stop that nobody would notice.

Owns the environment of a worker:

=====================  ============================================================================
``DSM_NODE``           local socket of its node's manager
``DSM_RANK``           its rank, ``DSM_SIZE`` the number of ranks
``OMP_NUM_THREADS``    unless it is set: the processors divided by the number of ranks, at least 1, so
                       that the BLAS threads of all ranks together fit the machine
``PYTHONUNBUFFERED``   unless it is set: 1, so that output appears when it is printed, and is not lost
                       when the worker is stopped
=====================  ============================================================================

The secret of the cluster does not get into it: a worker talks to its own manager only, which knows it
by its user.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from dsm.launch.processes import Process, detach


def worker_environment(socket: str, rank: int, size: int) -> dict[str, str]:
    """Return the environment of worker `rank`."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DSM_SECRET", "DSM_SECRET_FILE")
    }
    environment.update(DSM_NODE=socket, DSM_RANK=str(rank), DSM_SIZE=str(size))
    if size > 1:
        processors = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, processors // size)))
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment


class Worker(Process):
    """One rank of the job."""

    def __init__(
        self,
        rank: int,
        node: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        stdin: int,
        before_exec: Callable[[], None],
    ) -> None:
        popen = subprocess.Popen(
            list(command),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=before_exec,
        )
        super().__init__(popen)
        self.rank = rank
        self.node = node
        self.stdout_fd = detach(popen.stdout)
        self.stderr_fd = detach(popen.stderr)
