"""`dsm run` and `dsm node` as processes, with a manager that manages nothing (or the real one)."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from launched import Launched

FAKE_MANAGER = Path(__file__).with_name("fake_manager.py")
#: Runs a verb with the manager's command replaced.
_DRIVER = """
import sys
from dsm.launch import {verb} as verb, managers
command = [sys.executable, {fake!r}]
from dsm.launch import job
for name, value in {settings!r}.items():
    assert hasattr(job, name)
    setattr(job, name, value)
for module in (managers, verb, sys.modules.get("dsm.launch.job")):
    if hasattr(module, "manager_command"):
        module.manager_command = lambda: command
sys.exit(verb.main(sys.argv[1:]))
"""


@pytest.fixture
def launch(tmp_path):
    """Return a function that starts a verb; `program` is the text of a worker.

    `settings` are times of `dsm.launch.job`: with one that is longer than any test, what happens has not
    happened because that time was over.
    """
    started = []

    def start(*arguments, program=None, verb="run", environment=None, settings=None, **options):
        words = [
            sys.executable,
            "-c",
            _DRIVER.format(verb=verb, fake=str(FAKE_MANAGER), settings=settings or {}),
            *map(str, arguments),
        ]
        if program is not None:
            script = tmp_path / "program.py"
            script.write_text(_PREAMBLE + textwrap.dedent(program))
            words.append(str(script))
        launched = Launched(words, tmp_path, environment or {}, **options)
        started.append(launched)
        return launched

    yield start
    for launched in started:
        launched.stop()


_PREAMBLE = """\
import os, signal, subprocess, sys, time
rank, size = int(os.environ["DSM_RANK"]), int(os.environ["DSM_SIZE"])
def wait():
    while True:
        time.sleep(60)
"""
