"""A `dsm` command as a process of a test, with its output in files.

How long a process takes to start or to end says nothing on a busy machine: what waits for its words waits as
long as it lives, and only a test as a whole has a deadline.
"""

from __future__ import annotations

import os
import subprocess
import time


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

    def status(self):
        return self.process.wait()

    def stop(self):
        """Kill it if it still runs; its guards do the rest."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def wait_printed(self, text, count=1):
        self._wait_for(lambda: self.stdout, text, count)

    def wait_said(self, text, count=1):
        self._wait_for(lambda: self.stderr, text, count)

    def _wait_for(self, words, text, count):
        ended = False
        while words().count(text) < count:
            assert not ended, f"it ended before it said {text!r} {count} times: {self.stdout}{self.stderr}"
            ended = self.process.poll() is not None
            time.sleep(0.005)
