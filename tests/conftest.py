"""For all tests: nothing is left behind, hypothesis is reproducible, hangs are dumped.

Every test runs with a mark in the environment that the processes it starts inherit.  When it is over,
no process with that mark, no manager's socket and no shared-memory file may remain; what belongs to a
fixture of a module or of the session is checked when that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import uuid
from pathlib import Path

import hypothesis
import pytest

import support
from dsm import proc
from dsm.testing.starting import ForkServer

hypothesis.settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config):
    """Where no bytecode may lie beside the sources, keep it for the run: hundreds of processes read it."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and "PYTHONPYCACHEPREFIX" not in os.environ:
        directory = tempfile.TemporaryDirectory(prefix="dsm-bytecode-")
        config.add_cleanup(directory.cleanup)
        os.environ["PYTHONPYCACHEPREFIX"] = directory.name


def _complain(name: str, value: str, when: str) -> None:
    """Fail when processes with this mark remain; they are killed first, the next test is innocent."""
    try:
        support.wait_until(lambda: not support.processes_marked(name, value), support.GONE_S)
    except AssertionError:
        left = support.processes_marked(name, value)
        described = [support.describe(pid) for pid in left]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if described:
            pytest.fail(f"processes remain {when}:\n" + "\n".join(described), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_nothing():
    mark = uuid.uuid4().hex
    os.environ[support.SESSION_MARK] = mark
    # Children import the package that is tested, from whatever directory they run in.
    root = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with ForkServer(["pytest", "support"]):
        yield
    _complain(support.SESSION_MARK, mark, "after the last test")


@pytest.fixture(autouse=True)
def _test_leaves_nothing(_session_leaves_nothing):
    mark = uuid.uuid4().hex
    os.environ[support.TEST_MARK] = mark
    sockets = set(proc.manager_sockets())
    files = support.shared_memory_files()
    yield
    os.environ.pop(support.TEST_MARK, None)
    _complain(support.TEST_MARK, mark, "after this test")

    def sockets_left() -> set[str]:
        new = {f"socket:[{inode}]" for name, inode in proc.manager_sockets().items() if name not in sockets}
        # Those of tests that run beside us (pytest-xdist) are held by processes that are not ours.
        return new & proc.descriptors("self") if new else new

    support.wait_until(lambda: not sockets_left(), support.GONE_S, "managers' sockets are closed")
    support.wait_until(
        lambda: support.shared_memory_files() <= files, support.GONE_S, "nothing new lies in /dev/shm"
    )
