"""The simulator's command line: statuses, replay of a failing seed, the progress of many."""

import re
import subprocess
import sys

from dsm.testing.simulation.__main__ import main


def test_one_seed_prints_its_digest(capsys):
    assert main(["--seed", "3", "--events", "1000"]) == 0
    first = capsys.readouterr().out
    assert re.search(r"seed 3: [\d,]+ events, all checks held, digest [0-9a-f]{16}", first)
    main(["--seed", "3", "--events", "1000"])
    assert capsys.readouterr().out == first


def test_a_failing_seed_prints_how_to_replay_it(capsys):
    assert main(["--seed", "0", "--mutant", "skipped-invalidation"]) == 1
    out = capsys.readouterr().out
    assert "Violation" in out and "python -m dsm.testing.simulation --seed 0 --trace" in out
    assert " n0  " in out, "the end of the trace is shown"


def test_trace_prints_everything(capsys):
    assert main(["--seed", "5", "--events", "1000", "--trace"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 500


def test_many_seeds_report_events_and_coverage():
    command = [
        sys.executable,
        "-m",
        "dsm.testing.simulation",
        "--seeds",
        "0:6",
        "--events",
        "1000",
        "--jobs",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(r"6 seeds, 0 failed, [\d,]+ events", done.stdout)
    assert "rows of the transition table" in done.stdout


def test_many_seeds_stop_after_enough_failures(capsys):
    assert main(["--seeds", "0:50", "--mutant", "forgotten-owner", "--max-failures", "2"]) == 1
    assert "stopped after 2 failures" in capsys.readouterr().out


def test_list_of_mutants(capsys):
    assert main(["--list-mutants"]) == 0
    assert "skipped-invalidation" in capsys.readouterr().out
