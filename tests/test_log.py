"""DSM_LOG: levels, files, and what managers and launchers say."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys

import pytest

import dsm
from dsm import log
from dsm.coherence.messages import Send
from dsm.config import log_options
from dsm.errors import UsageError
from dsm.manager.manager import Manager
from dsm.testing import Cluster
from support import wait_until


@pytest.fixture(autouse=True)
def _as_it_was():
    """Undo what a test configures in this process."""
    handlers, level, propagate = log.logger.handlers[:], log.logger.level, log.logger.propagate
    yield
    for handler in log.logger.handlers[:]:
        if handler not in handlers:
            log.logger.removeHandler(handler)
            handler.close()
    log.logger.handlers[:] = handlers
    log.logger.setLevel(level)
    log.logger.propagate = propagate
    log.identify("")


@pytest.fixture
def lines():
    """Lines that the log would write to standard error."""
    written = []
    log.configure({"DSM_LOG": ""})
    log.redirect(written.append)
    return written


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", (logging.WARNING, "")),
        ("warning", (logging.WARNING, "")),
        ("Debug", (logging.DEBUG, "")),
        ("info:/tmp/a:b", (logging.INFO, "/tmp/a:b")),
        ("error:/tmp/{pid}.log", (logging.ERROR, "/tmp/{pid}.log")),
    ],
)
def test_what_the_variable_may_say(text, options):
    assert log_options({"DSM_LOG": text}) == options


@pytest.mark.parametrize(
    "text", ["loud", "10", ":/tmp/x", "info:", "info:relative", "info:/tmp/{node}", "info:/{"]
)
def test_what_it_may_not_say(text):
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        log_options({"DSM_LOG": text})


def test_without_the_variable_warnings_are_brief(lines):
    log.identify("node 3")
    log.logger.info("not this")
    log.logger.warning("%d things", 5)
    assert lines == ["dsm: node 3: 5 things\n"]


def test_a_file_is_appended_to_and_named_by_the_process(tmp_path):
    log.configure({"DSM_LOG": f"info:{tmp_path}/{{pid}}.log"})
    log.logger.info("first")
    log.configure({"DSM_LOG": f"info:{tmp_path}/{{pid}}.log"})
    log.identify("node 1")
    log.logger.debug("not this")
    log.logger.warning("second\nwith \ud800 in it")
    text = (tmp_path / f"{os.getpid()}.log").read_text()
    wrong = r"with \\ud800 in it"
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}"
    pid = os.getpid()
    assert re.fullmatch(
        rf"{stamp} info     {pid} dsm: first\n{stamp} warning  {pid} dsm: node 1: second\n{wrong}\n",
        text,
    )
    assert (tmp_path / f"{pid}.log").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write the log /.*/no/log: No such file"):
        log.configure({"DSM_LOG": f"info:{tmp_path}/no/log"})


def test_a_full_disk_does_not_stop_the_writer():
    log.configure({"DSM_LOG": "info:/dev/full"})
    log.logger.warning("lost")


def test_a_wrong_value_is_refused_at_the_start(tmp_path, monkeypatch):
    script = tmp_path / "program.py"
    script.write_text("")
    environment = {**os.environ, "DSM_LOG": "loud", "DSM_SECRET": "s" * 20}
    for words in (
        ["dsm", "run", str(script)],
        ["dsm", "node", "--listen", "127.0.0.1:0"],
        ["dsm.manager"],
    ):
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "DSM_LOG is 'loud'; it must be one of debug" in done.stderr) == (2, True)
    monkeypatch.setenv("DSM_LOG", "loud")
    with pytest.raises(UsageError, match="DSM_LOG is 'loud'"):
        dsm.attach()


def _region(node):
    node.array("squares", 4096, "f8")[node.rank :: node.size] = node.rank
    node.barrier()
    if node.rank == 0:
        node.destroy("squares")


def test_managers_say_what_happens(tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setenv("DSM_LOG", f"info:{path}")
    with Cluster(3) as cluster:
        monkeypatch.delenv("DSM_LOG")
        cluster.all(_region)
        cluster.managers[1].process.send_signal(signal.SIGKILL)
        wait_until(lambda: "node 1 is lost: " in path.read_text())
        cluster.workers[2].kill()
        wait_until(lambda: "node 2: worker 0 (rank 2, process " in path.read_text())
    text = path.read_text()
    for expected in (
        "node 0: serves @dsm-",
        "node 0: node 1 joined from 127.0.0.1:",
        "node 1: joined: nodes [2]",
        "node 0: region 1 (squares): 32768 bytes",
        "node 2: region 1 is destroyed",
        "node 0: ended",
    ):
        assert expected in text
    assert " debug " not in text


def _touch(node):
    array = node.array("grid", 4096, "f8")
    if node.rank == 0:
        array[:] = 1
    node.barrier()
    return float(array.sum())


def test_transactions_are_in_the_log_when_it_is_detailed(tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setenv("DSM_LOG", f"debug:{path}")
    with Cluster(2) as cluster:
        assert cluster.all(_touch) == [4096, 4096]
    text = path.read_text()
    for expected in (
        "node 1: worker 0: reads page 0 of region 1",
        "to node 0: GET region 1",
        "received: DATA region 1",
    ):
        assert expected in text


@pytest.mark.parametrize("level", ["info", "debug"])
def test_nothing_lies_on_the_way_of_a_fault_when_it_is_not(level):
    log.configure({"DSM_LOG": level})
    log.redirect(lambda line: None)
    manager = Manager("@dsm-" + os.urandom(8).hex(), None, 0)
    manager.start(None, None)
    traced = {"fault", "message", "pages"} & set(vars(manager.coherence))
    sending = manager.coherence.effects[Send]
    assert bool(traced) == (level == "debug") == (sending != manager.coherence._send)
    manager.sessions.close()
    manager.coordinator.close()
    manager.board.close()
    manager.loop.close()
    for fd in (manager.node_fd, manager.bell_fd):
        os.close(fd)


INTERNAL = """
import sys
from dsm.coherence.messages import Kind, Message
from dsm.manager import __main__, manager
from dsm.types import Region, RegionOptions

def run(self):
    engine = self.coherence.engine
    engine.add_region(Region(1, RegionOptions(1 << 16, "grid", home=0), 0, (0, 1)))
    engine.message(Message(Kind.AHEAD, 1, 2, 1, 8, 5), 0)
    engine.message(Message(Kind.CONFIRM, 1, 3, 1, 7, 5), 0)

manager.Manager.run = run
sys.exit(__main__.main([]))
"""


@pytest.mark.parametrize("into_file", [False, True])
def test_an_internal_error_is_told_with_its_story(tmp_path, into_file):
    path = tmp_path / "log"
    environment = {**os.environ, "DSM_LOG": f"warning:{path}" if into_file else ""}
    done = subprocess.run(
        [sys.executable, "-c", INTERNAL], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    if into_file:
        assert "internal error, this node ends: CONFIRM for pages 3+1: no such transaction" in done.stderr
    told = path.read_text() if into_file else done.stderr
    for expected in (
        "internal error, this node ends: CONFIRM for pages 3+1: no such transaction",
        "node 0, region 1: page 3 is INVALID here",
        "  CONFIRM 3+1 request 7 of node 5 0x0",
        "last messages of this node",
        "region 1  AHEAD 2+1 request 8 of node 5",
        "Traceback (most recent call last):",
        "`dsm report`",
    ):
        assert expected in told
