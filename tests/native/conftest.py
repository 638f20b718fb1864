"""Tests of the shim run it in processes of their own: what fails here may die or hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from diff_machines import Plain, Shim

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

PREFIX = """
import ctypes, errno, os, select, signal, sys, threading, time
import numpy as np
from dsm import _native
import fake
from fake import Node, running, until, PAGE, LOST, CLOSED, LIMIT
helper = ctypes.CDLL(os.environ["DSM_TEST_HELPER"])
u64 = ctypes.c_uint64
helper.touch.argtypes = [ctypes.c_void_p, u64, u64, ctypes.c_int, ctypes.c_int, ctypes.c_int, u64]
helper.touch.restype = helper.bounce.restype = helper.install_repairing.restype = ctypes.c_uint64
helper.use_up_maps.restype = helper.installed.restype = ctypes.c_uint64
helper.count_other.restype = ctypes.c_uint64
helper.count_other.argtypes = [ctypes.c_void_p] + [ctypes.c_uint64] * 2 + [ctypes.c_int] * 2
helper.use_up_maps.argtypes = [ctypes.c_uint64]
helper.bounce.argtypes = [ctypes.c_void_p] + [ctypes.c_uint64] * 4 + [ctypes.c_uint32, ctypes.c_int]
helper.errno_after.argtypes = helper.fork_and_read.argtypes = [ctypes.c_void_p]
helper.touch_on_alternate_stack.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
helper.set_clock.argtypes = [u64]
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("native") / "helper.so"
    compiler = ["gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*compiler, str(HERE / "helper.c"), "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="session", params=["shim", "plain"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shim | Plain:
    """Diffs as this machine makes them, and as any other does."""
    return Shim() if request.param == "shim" else Plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def run(helper: Path) -> Run:
    """Run a script in a process (group) of its own; it must end by itself, with `status`, and say nothing.

    With `preload` the helper's functions are in the place of libc's of the same name.
    """

    def run(
        script: str,
        status: int = 0,
        timeout_s: float = 30,
        options: tuple[str, ...] = (),
        preload: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{HERE}:{HERE.parent}",
            "DSM_TEST_HELPER": str(helper),
            "OPENBLAS_NUM_THREADS": "1",
        }
        if preload:
            environment["LD_PRELOAD"] = str(helper)
        process = subprocess.Popen(
            [sys.executable, *options, "-c", PREFIX + textwrap.dedent(script)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, error = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, error = process.communicate()
            pytest.fail(f"did not end within {timeout_s} s\n{out}{error}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a manager whose worker died
        assert process.returncode == status, f"ended with {process.returncode}\n{out}{error}"
        if status == 0:
            assert error == ""
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    return run
