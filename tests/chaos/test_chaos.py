"""Chaos in short: a few jobs with few events on real processes.  `make chaos` is the long form."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dsm.testing.chaos.job import Job
from dsm.testing.chaos.plan import Action, Event, JobPlan
from dsm.testing.chaos.remains import MARK
from dsm.testing.network import why_not

PLANS = {
    "a worker and a node die": JobPlan(
        "short 1", 3, 2, "cyclic", 4096, False,
        (
            Event(0.3, Action.STOP_WORKER, 0, 1, for_s=0.2),
            Event(0.6, Action.KILL_WORKER, 1, 3),
            Event(0.9, Action.KILL_MANAGER, 2),
        ),
        (0.2, 0.8),
    ),
    "stops longer than a page may take": JobPlan(
        "short 2", 2, 2, "first-touch", 16384, False,
        (
            Event(0.3, Action.STOP_WORKER, 1, 2, for_s=1.4),
            Event(0.5, Action.STOP_MANAGER, 1, for_s=1.4),
        ),
        (0.4,),
    ),
    "the first node dies": JobPlan(
        "short 3", 3, 1, "block", 4096, False,
        (Event(0.3, Action.STOP_MANAGER, 1, for_s=0.1), Event(0.6, Action.KILL_MANAGER, 0)),
    ),
    "a link is cut": JobPlan(
        "short 4", 3, 1, "cyclic", 4096, True,
        (
            Event(0.3, Action.CUT, 1, other=2, for_s=0.4),
            Event(0.9, Action.CUT, 0, other=1, for_s=1.5),
            Event(1.2, Action.KILL_MANAGER, 2),
        ),
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Journals of jobs in which something went wrong are kept here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", PLANS)
def test_short_chaos(name, folder):
    if PLANS[name].networked and why_not():
        pytest.skip(why_not())
    said = []
    job = Job(PLANS[name], said.append)
    problems = job.run()
    assert not problems, "\n".join([*said, job.summary, *problems])
    assert len(said) == len(PLANS[name].events)


def test_the_command_prints_the_plan_of_a_seed():
    words = [sys.executable, "-m", "dsm.testing.chaos", "--plan", "--seed", "5", "--events", "40"]
    plans = [
        subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ).stdout
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
    assert "seed 5: 40 events" in plans[0]
    assert plans[0].count(" s  ") == 40


def test_what_remains_is_found(folder):
    """A process that a worker leaves behind, in a session of its own."""
    plan = JobPlan("left", 1, 1, "cyclic", 4096, False, (Event(0.1, Action.STOP_WORKER, 0, 0, for_s=0.05),))
    left = []

    def leave(_):
        if not left:
            environ = Path(f"/proc/{job._processes.workers[0].pid}/environ").read_bytes().split(b"\0")
            marked = dict(word.decode().split("=", 1) for word in environ if word.startswith(MARK.encode()))
            left.append(subprocess.Popen(["sleep", "60"], env={**os.environ, **marked}))

    job = Job(plan, leave, gone_s=1.0)
    try:
        problems = job.run()
    finally:
        left[0].kill()
        left[0].wait()
    assert list(folder.glob("dsm-chaos-*/journal-0"))
    assert any(f"process {left[0].pid} remains: sleep 60" in problem for problem in problems)
