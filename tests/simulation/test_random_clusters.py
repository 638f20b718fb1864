"""Clusters drawn from seeds: every check of the simulator holds, whatever the interleaving."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsm.testing.simulation import report, rows_not_taken, run_seed
from dsm.testing.simulation.script import Script, replay

SEEDS = range(150)
BLOCK = 10


@pytest.mark.parametrize("first", SEEDS[::BLOCK])
def test_checks_hold_for_seeds(first):
    for seed in range(first, first + BLOCK):
        outcome = run_seed(seed)
        assert outcome.ok, report(outcome)
        assert outcome.events >= 1000


def test_seeds_and_traces_take_every_row_of_the_transition_table():
    # The rows that a seed in thousands takes have traces of their own.
    coverage = {}
    for trace in sorted((Path(__file__).parent / "traces").glob("*.txt")):
        script = Script()
        replay(trace.read_text(), script)
        coverage |= script.coverage
    for seed in range(1000, 1200):
        outcome = run_seed(seed, min_events=2000)
        assert outcome.ok, report(outcome)
        coverage |= outcome.coverage
        if not rows_not_taken(coverage):
            return
    pytest.fail(f"never taken: {rows_not_taken(coverage)}")


def test_the_same_seed_does_the_same_things():
    first, second = run_seed(7), run_seed(7)
    assert (first.events, first.digest) == (second.events, second.digest)
    assert run_seed(8).digest != first.digest


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_does_not_depend_on_the_process(hash_seed):
    here = run_seed(11)
    code = "from dsm.testing.simulation import run_seed; o = run_seed(11); print(o.events, o.digest)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [str(here.events), str(here.digest)]
