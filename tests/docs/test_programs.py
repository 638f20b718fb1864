"""Every program of the documentation runs, ends as the page says and prints what the page shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import pages

PROGRAMS = [program for path in pages.PAGES for program in pages.read(path)[0]]


def _words(program):
    """Return the environment and the command line that stand in the program's first line."""
    words = list(program.command)
    environment = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    launcher = [sys.executable, "-m", "dsm"] if words[0] == "dsm" else [sys.executable]
    return environment, [*launcher, *words[1:]]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: f"{program.page}:{program.name}")
def test_program(program, tmp_path):
    (tmp_path / program.name).write_text(program.text)
    environment, command = _words(program)
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == program.status, said
    if program.prints is not None:
        assert pages.is_shown(program.prints, done.stdout, done.stderr), said


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_every_block_of_python_belongs_to_a_program(path):
    programs, left = pages.read(path)
    assert programs
    assert left == []


def test_no_two_programs_of_a_page_have_one_name():
    names = [(program.page, program.name) for program in PROGRAMS]
    assert len(set(names)) == len(names)


def test_what_a_program_prints_is_compared():
    assert pages.is_shown("1 of …\nbad …\n", "1 of 3\n", "noise\nbad luck\nmore\n")
    assert not pages.is_shown("1 of …\n", "1 of 3\n2 of 3\n", "")
    assert not pages.is_shown("1 of …\n", "", "")
    assert not pages.is_shown("2 of …\n", "1 of 3\n", "2 of 3\n")
