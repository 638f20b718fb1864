"""Each example runs on one and on several nodes and finds its own result right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PLACES = [(1, 1), (3, 1), (4, 2), (3, 3)]
PNG = b"\x89PNG\r\n\x1a\n"


def _run(place, *words, cwd):
    ranks, nodes = place
    launcher = (
        ["-m", "dsm", "run", "-n", str(ranks), "--nodes", str(nodes), "--timeout", "60"]
        if place != (0, 0)
        else []
    )
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("place", [(0, 0), *PLACES], ids=str)
def test_terrain_equals_plain_numpy(place, tmp_path):
    pytest.importorskip("matplotlib")
    said = _run(place, EXAMPLES / "terrain.py", "--check", "--size", 500, "--sweeps", 6, cwd=tmp_path)
    workers, nodes = place if place != (0, 0) else (1, 1)
    assert f"{workers} workers on {nodes} nodes" in said
    assert "checked: equal, bit for bit" in said
    assert (tmp_path / "terrain.png").read_bytes().startswith(PNG)
    moved = int(said.split(" pages moved")[0].split()[-1])
    assert (moved > 0) == (nodes > 1)


def test_terrain_with_more_workers_than_rows(tmp_path):
    pytest.importorskip("matplotlib")
    said = _run((6, 2), EXAMPLES / "terrain.py", "--check", "--size", 4, "--sweeps", 3, cwd=tmp_path)
    assert "checked: equal, bit for bit" in said


@pytest.mark.parametrize("place", PLACES[1:], ids=str)
def test_queue_delivers_each_item_once(place, tmp_path):
    said = _run(place, EXAMPLES / "queue.py", "--items", 200, "--slots", 5, cwd=tmp_path)
    assert "200 items, each exactly once" in said


def test_queue_with_a_single_slot(tmp_path):
    said = _run((2, 2), EXAMPLES / "queue.py", "--items", 20, "--slots", 1, cwd=tmp_path)
    assert "20 items, each exactly once" in said


def test_queue_alone_says_what_it_needs(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "queue.py"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "dsm run -n 2" in done.stderr


def test_the_first_program_of_the_readme(tmp_path):
    readme = (EXAMPLES.parent / "README.md").read_text()
    program = tmp_path / "first.py"
    program.write_text(readme.split("```python\n")[1].split("```")[0])
    last, total = _run((4, 2), program, cwd=tmp_path).split()
    assert float(last) == 999_999.0**2
    assert float(total) == pytest.approx(sum(float(k) ** 2 for k in range(1_000_000)))
