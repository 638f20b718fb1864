"""`make` says in one line what is missing, before it does anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Programs that make and the check itself need.
TOOLS = ("sh", "bash", "make", "sed", "rm", "touch", "printf", "cat", "expand")


@pytest.fixture
def bare(tmp_path):
    """Return a function that runs `make setup` on a machine that has nothing but `tools`."""
    tree, programs = tmp_path / "tree", tmp_path / "bin"
    (tree / ".ci").mkdir(parents=True)
    programs.mkdir()
    for name in ("Makefile", "pyproject.toml", "setup.py", ".ci/prerequisites.sh"):
        shutil.copy(ROOT / name, tree / name)
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool))

    def make(**scripts):
        for name, text in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        done = subprocess.run(
            ["make", "setup"],
            cwd=tree,
            env={"PATH": str(programs)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode != 0
        assert not (tree / ".venv").exists()
        said = (done.stdout + done.stderr).splitlines()
        assert len(said) == 1, said
        return said[0]

    make.headers = tmp_path / "include"
    make.headers.mkdir()
    return make


def _python(include, ensurepip=True, version="3.12"):
    return f"""case "$*" in
*ensurepip*) exit {0 if ensurepip else 1};;
*get_path*) echo {include};;
*print*) echo {version};;
*version_info*) exit {int(version == "3.9")};;
esac"""


def test_everything_is_missing(bare):
    assert bare().endswith("apt-get install python3 python3-venv python3-dev gcc.  Stop.")


def test_no_compiler(bare):
    (bare.headers / "Python.h").touch()
    assert bare(python3=_python(bare.headers)).endswith("(gcc). Install with: apt-get install gcc.  Stop.")


def test_no_headers(bare):
    said = bare(python3=_python(bare.headers), gcc="cat >/dev/null")
    assert said.endswith("apt-get install python3-dev.  Stop.")


def test_no_venv(bare):
    (bare.headers / "Python.h").touch()
    said = bare(python3=_python(bare.headers, ensurepip=False), gcc="cat >/dev/null")
    assert said.endswith("apt-get install python3-venv.  Stop.")


def test_no_c_library(bare):
    (bare.headers / "Python.h").touch()
    assert bare(python3=_python(bare.headers), gcc="exit 1").endswith("apt-get install libc6-dev.  Stop.")


def test_python_too_old(bare):
    said = bare(python3=_python(bare.headers, version="3.9"), gcc="cat >/dev/null")
    assert "Python 3.11 or newer is needed, python3 is 3.9" in said


def test_the_files_name_no_machine():
    for name in ("Makefile", "pyproject.toml", "setup.py", ".ci/prerequisites.sh", ".ci/run"):
        text = (ROOT / name).read_text()
        assert "http" not in text and "index-url" not in text and os.path.expanduser("~") not in text
