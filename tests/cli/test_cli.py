"""The command `dsm` itself: its verbs, their help, and what `dsm doctor` finds."""

import os
import subprocess
import sys

import pytest

from dsm.cli import VERBS


def _dsm(*words, environment=None):
    command = [sys.executable, "-m", "dsm", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)], ids=str)
def test_help_names_every_verb(words):
    done = _dsm(*words)
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    done = _dsm(verb, "--help")
    assert done.returncode == 0
    assert f"usage: dsm {verb}" in done.stdout


def test_an_unknown_verb_is_answered_with_the_known_ones():
    done = _dsm("frobnicate")
    assert done.returncode == 2
    assert "the verbs are run, node" in done.stderr


def test_version_names_what_a_report_needs():
    for word in ("version", "--version"):
        done = _dsm(word)
        assert done.returncode == 0
        assert [line.split()[0] for line in done.stdout.splitlines()[:4]] == [
            "dsm",
            "numpy",
            "cffi",
            "msgspec",
        ]


def test_starting_costs_no_numpy():
    loaded = "import sys, dsm.cli, dsm.launch.run; print('numpy' in sys.modules, 'cffi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"


def test_doctor_finds_a_working_node_and_explains_pinning():
    done = _dsm("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a private node starts, and a page that is touched comes" in done.stdout
    assert "with node.pin(a):" in done.stdout
    assert "vm.max_map_count" in done.stdout


@pytest.mark.parametrize("verb", ["doctor", "report"])
def test_output_that_nobody_reads_is_no_traceback(verb):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dsm", verb]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_named():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dsm", "doctor"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "dsm doctor: standard output: No space left on device\n")
