"""A `dsm` command as a process of a test, with its output in files."""

from __future__ import annotations

import os
import subprocess

import support


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

    def stop(self):
        """Kill it if it still runs; its guards do the rest."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def wait_printed(self, text, count=1):
        support.wait_until(
            lambda: self.stdout.count(text) >= count, what=f"{text!r} is printed {count} times"
        )

    def wait_said(self, text, count=1):
        support.wait_until(lambda: self.stderr.count(text) >= count, what=f"{text!r} is said {count} times")
