"""How a manager is started, and the line by which it says that it serves."""

import json
import os
import sys

import pytest

from dsm.errors import LimitError, NodeLostError
from dsm.manager_process import (
    PACKAGE_ROOT,
    Ready,
    manager_command,
    manager_environment,
    parse_ready,
    ready_line,
    refusal_line,
)


@pytest.mark.parametrize("listen", ["127.0.0.1:7000", ""])
def test_what_was_said_is_understood(listen):
    ready = Ready(3, "@dsm-1", listen)
    assert parse_ready(ready_line(ready)) == ready


def test_the_line_is_the_documented_json():
    said = json.loads(ready_line(Ready(0, "@dsm-1", "")))
    assert said == {"node": 0, "socket": "@dsm-1", "listen": None, "pid": os.getpid()}


def test_a_refusal_keeps_its_class_and_message():
    with pytest.raises(LimitError, match="too many nodes"):
        parse_ready(refusal_line(LimitError("too many nodes")))


@pytest.mark.parametrize("line", [b"", b"hello\n", b"[]\n", b'{"node": 1}\n', b'{"error": "x"}\n'])
def test_anything_else_is_the_managers_fault(line):
    with pytest.raises(NodeLostError, match="ready"):
        parse_ready(line)


def test_nothing_of_another_job_is_inherited(monkeypatch):
    place = ("DSM_NODE", "DSM_RANK", "DSM_SIZE", "DSM_SECRET", "DSM_SECRET_FILE")
    for name in place:
        monkeypatch.setenv(name, "another job's")
    monkeypatch.setenv("DSM_ADDRESS_LOW", "580000000000")
    environment = manager_environment("ours")
    assert {name: environment[name] for name in place if name in environment} == {"DSM_SECRET": "ours"}
    assert environment["DSM_ADDRESS_LOW"] == "580000000000"


def test_it_runs_this_very_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert manager_command() == [sys.executable, "-P", "-m", "dsm.manager"]
    paths = manager_environment()["PYTHONPATH"].split(os.pathsep)
    assert paths[0] == "/elsewhere" and PACKAGE_ROOT in [*paths, *sys.path]
