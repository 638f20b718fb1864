"""`dsm report`: what a report of an error needs, and nothing that is private."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsm.cli import report
from dsm.testing import Cluster

SECRET = "correct-horse-battery-staple-0123456789"


def _dsm(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "dsm", "report", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_a_report_has_what_is_needed_and_no_secrets(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "-in-a-file\n")
    secret.chmod(0o600)
    with Cluster(1):
        done = _dsm(
            DSM_SECRET=SECRET,
            DSM_SECRET_FILE=str(secret),
            DSM_API_TOKEN="tell-nobody-this",
            DSM_NOTE=f"{Path.home()}/x {SECRET}-in-a-file {SECRET}",
        )
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for section in (
        "versions",
        "machine",
        "limits",
        "pager and shim",
        "variables",
        "doctor",
        "clusters of this machine",
    ):
        assert f"[{section}]\n" in text
    for needed in (
        "dsm 0.", "Python 3.", "numpy ", "msgspec ", "cffi ", "kernel Linux", "distribution ", "processors ",
        "MemTotal", "vm.max_map_count ", "RLIMIT_NOFILE ", "vm.overcommit_memory ", "pager signals",
        "addresses 0x", "sha256 ", "a private node starts", "a cluster of 1 node (epoch 1",
        "nothing stands still",
        f"DSM_SECRET=(set, {len(SECRET)} characters, not shown)",
    ):  # fmt: skip
        assert needed in text
    for private in (SECRET, "tell-nobody-this", str(Path.home())):
        assert private not in text + done.stderr


def test_names_are_replaced(monkeypatch):
    monkeypatch.setattr(report, "_user", lambda: "ann")
    monkeypatch.setattr(report.socket, "gethostname", lambda: "vm")
    monkeypatch.setattr(report.socket, "getfqdn", lambda: "vm.example.org")
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("DSM_SECRET", SECRET)
    said = report.scrub(
        "/home/ann/log ann@vm on vm.example.org, vm. vm.max_map_count planned 10.1.2.3:7000 127.0.0.1:80 "
        + SECRET
    )
    assert (
        said == "~/log USER@HOST on HOST, HOST. vm.max_map_count planned ADDRESS:7000 127.0.0.1:80 (secret)"
    )


def test_it_is_written_to_a_file(tmp_path):
    path = tmp_path / "report.txt"
    done = _dsm("--output", str(path))
    assert done.returncode == 0 and done.stdout == f"written to {path}; look through it before you send it\n"
    assert path.read_text().startswith("[versions]\ndsm ")


@pytest.mark.parametrize("path", ["/dev/full", "/nonexistent/report"])
def test_a_file_that_cannot_be_written_is_named(path, monkeypatch, capsys):
    monkeypatch.setattr(report, "_report", lambda: iter(["x"]))
    assert report.run(report.argparse.Namespace(output=Path(path))) == 1
    assert f"cannot write {path}: " in capsys.readouterr().err
