"""A manager for each test module, and this process attached to it for each test.

Tests run against the fake manager beside this file; DSM_TEST_MANAGER=real runs those that do not ask
it for trouble against ``python -m dsm.manager``.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dsm
from dsm.worker import startup

HERE = Path(__file__).parent
REAL = os.environ.get("DSM_TEST_MANAGER") == "real"
COMMAND = ["-P", "-m", "dsm.manager"] if REAL else [str(HERE / "fake_manager.py")]


@contextlib.contextmanager
def _run_manager(*arguments):
    """Run a manager; gives its address."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *COMMAND, "--ready-fd", str(write), *arguments],
        pass_fds=(write,),
        start_new_session=True,
    )
    os.close(write)
    try:
        with open(read) as ready:
            line = ready.readline()
        assert line, "the manager did not start"
        yield json.loads(line)["socket"]
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def manager():
    with _run_manager() as address:
        yield address


@pytest.fixture
def run_manager():
    """The context manager above, for other arguments."""
    return _run_manager


@pytest.fixture
def node(manager, monkeypatch):
    monkeypatch.setenv("DSM_NODE", manager)
    with dsm.attach() as node:
        yield node


@pytest.fixture
def private(monkeypatch):
    """No DSM_NODE, and private managers are of the kind that is tested."""
    monkeypatch.delenv("DSM_NODE", raising=False)
    monkeypatch.setattr(startup, "MANAGER", tuple(COMMAND))


@pytest.fixture
def needs_fake():
    if REAL:
        pytest.skip("asks the fake manager for trouble")


@pytest.fixture
def run_worker(manager):
    """Run a program in a process of its own, with DSM_NODE set; gives the completed process."""

    def run(program, timeout=60, env=None, **options):
        return subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"DSM_NODE": manager} | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )

    return run
