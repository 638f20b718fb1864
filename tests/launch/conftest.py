"""`dsm run` and `dsm node` as processes, with a manager that manages nothing (or the real one)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import support

FAKE_MANAGER = Path(__file__).with_name("fake_manager.py")
#: Runs a verb with the manager's command replaced.
_DRIVER = """
import sys
from dsm.launch import {verb} as verb, managers
command = [sys.executable, {fake!r}]
for module in (managers, verb, sys.modules.get("dsm.launch.job")):
    if hasattr(module, "manager_command"):
        module.manager_command = lambda: command
sys.exit(verb.main(sys.argv[1:]))
"""


class Launched:
    """A running `dsm` whose output is collected in files."""

    def __init__(self, command, directory, environment, **options):
        self._out = directory / "stdout"
        self._err = directory / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **environment},
                stdin=options.pop("stdin", subprocess.DEVNULL),
                stdout=options.pop("stdout", out),
                stderr=options.pop("stderr", err),
                **options,
            )

    @property
    def pid(self):
        return self.process.pid

    @property
    def stdout(self):
        return self._out.read_text()

    @property
    def stderr(self):
        return self._err.read_text()

    def status(self, timeout_s=20):
        return self.process.wait(timeout_s)

    def wait_printed(self, text, count=1):
        support.wait_until(
            lambda: self.stdout.count(text) >= count, what=f"{text!r} is printed {count} times"
        )

    def wait_said(self, text, count=1):
        support.wait_until(lambda: self.stderr.count(text) >= count, what=f"{text!r} is said {count} times")


@pytest.fixture
def launch(tmp_path):
    """Return a function that starts a verb; `program` is the text of a worker."""
    started = []

    def start(*arguments, program=None, verb="run", environment=None, **options):
        words = [
            sys.executable,
            "-c",
            _DRIVER.format(verb=verb, fake=str(FAKE_MANAGER)),
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
        if launched.process.poll() is None:
            launched.process.send_signal(signal.SIGKILL)
        launched.process.wait(10)


_PREAMBLE = """\
import os, signal, subprocess, sys, time
rank, size = int(os.environ["DSM_RANK"]), int(os.environ["DSM_SIZE"])
def wait():
    while True:
        time.sleep(60)
"""
