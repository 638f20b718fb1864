"""The command `dsm` itself: its verbs, their help, and what `dsm doctor` finds."""

import os
import subprocess
import sys

import pytest

from dsm.cli import VERBS
from dsm.testing import Cluster


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


@pytest.fixture(scope="module")
def address():
    """Return a manager's, for the verbs that ask one."""
    with Cluster() as cluster:
        yield cluster.managers[0].socket


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--help",
        "version",
        "version --help",
        "doctor",
        "doctor --help",
        "status",
        "report",
        "sql 'SELECT 1'",
    ],
)
@pytest.mark.parametrize("output", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_is_an_error(words, output, address):
    shell = f"exec {sys.executable} -m dsm {words} {output}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "DSM_NODE": address}
    done = subprocess.run(shell, shell=True, env=environment, capture_output=True, text=True, timeout=60)
    name = " ".join(["dsm", *words.replace("--help", "").split()[:1]])
    what = "Bad file descriptor" if output == ">&-" else "No space left on device"
    assert (done.returncode, done.stderr) == (1, f"{name}: standard output: {what}\n")


@pytest.mark.parametrize("verb", ["run", "version", "doctor"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_nobody(verb, closed, tmp_path):
    """What is opened first would take their numbers, and be written to."""
    (tmp_path / "program.py").write_text(
        "import os\n"
        "links = [os.readlink(f'/proc/{os.getppid()}/fd/{fd}') for fd in range(3)]\n"
        "open('seen', 'w').write(' '.join(links))\n"
    )
    words = "-n 1 program.py" if verb == "run" else ""
    shell = f"exec {sys.executable} -m dsm {verb} {words} {closed}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        shell, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    refused = verb != "run" and ">&-" in closed.split()
    assert done.returncode == refused
    assert bool(done.stderr) == (refused and "2>&-" not in closed)
    if verb == "run":
        seen = (tmp_path / "seen").read_text().split(" ")
        assert [seen[fd] for fd, sign in enumerate(("<&-", " >&-", "2>&-")) if sign in f" {closed}"] == [
            "/dev/null"
        ] * closed.count("&-")
