"""What a row says, and that every row can be measured (small and once: figures are not judged here)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dsm.bench import NAMES, examples, jacobi
from dsm.bench.registry import GROUPS, ROWS
from dsm.bench.row import Row, combine, format_table

KEYS = ["row", "value", "unit", "floor", "ratio", "target", "spread", "pager", "fabric", "placement"]
KEYS += ["messages", "bytes", "note"]


def test_value_and_floor_are_medians_and_the_ratio_is_that_of_the_rounds():
    row = combine("x", "us", [10.0, 30.0, 24.0], [10.0, 10.0, 12.0], target=2.0)
    assert (row.value, row.floor, row.ratio) == (24.0, 10.0, 2.0)
    assert row.spread == pytest.approx(0.2)
    assert row.reached


def test_a_target_inside_the_spread_is_met_by_a_ratio_inside_it():
    def row(ratio):
        return Row("hit", ratio, "ms", 1.0, ratio, 1.0, 0.1)

    assert row(1.09).reached
    assert not row(1.11).reached
    assert not Row("fault", 2.05, "us", 1.0, 2.05, 2.0, 0.1).reached
    assert not Row("sharing", 0.5, "messages", 1.0, 0.5, 0.05, 0.9).reached


def test_a_row_without_floor_is_judged_by_its_value():
    assert Row("metadata", 12.0, "B/page", None, None, 16.0, None).reached
    assert not Row("metadata", 17.0, "B/page", None, None, 16.0, None).reached
    assert Row("atomic", 1.0, "us", 1.0, 1.0, None, 0.0).reached is None


def test_the_table_has_a_line_for_each_row():
    rows = [combine("a", "us", [1.0], [1.0]), Row("metadata", 12.0, "B/page", None, None, 16.0, None)]
    lines = format_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[-1].endswith("reached")


def test_the_table_has_the_columns_that_some_row_fills():
    row = Row("x", 1.0, "ms", None, None, None, None)
    assert "messages" not in format_table([row])
    counted = Row("y", 1.0, "ms", None, None, None, None, messages=7, bytes=3 << 20, note="no peer: why")
    head, _, first, second = format_table([row, counted]).splitlines()
    assert head.split() == ["row", "placement", "value", "unit", "messages", "MiB"]
    assert first.split() == ["x", "unpinned", "1", "ms"]
    assert second.split() == ["y", "unpinned", "1", "ms", "7", "3.00", "no", "peer:", "why"]


def test_every_row_and_group_can_be_asked_for():
    assert set(NAMES) == {name for name in ROWS if name != "fault --write"} | set(GROUPS)
    assert {row for rows in GROUPS.values() for row in rows} == set(ROWS)


def test_a_row_that_is_not_there_is_told():
    done = subprocess.run(
        [sys.executable, "-m", "dsm", "bench", "hit", "flight"], timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("dsm bench: there is no row 'flight'; there are basic, ")


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(jacobi.importlib.util, "find_spec", lambda name: None)
    mpirun, lacking = jacobi._peer()
    assert mpirun is None
    assert "mpi4py is not installed; pip install 'dsm[bench]'" in lacking
    row = jacobi._row("jacobi", [2.0, 1.0, 3.0], [], 1.15, lacking)
    assert (row.value, row.ratio, row.reached, row.note) == (2000.0, None, None, lacking)


@pytest.mark.parametrize("name", sorted(examples.PLACED))
def test_the_options_of_a_measured_example_exist(name):
    text = (examples._FOLDER / f"{name}.py").read_text()
    assert [word for word in examples.PLACED[name] if word.startswith("--") and f'"{word}"' not in text] == []


#: Runs in a process of its own: multiprocessing's helper process ends with it.
SMALL = """
import sys
from dsm.bench import blocks, clients, dirty, examples, fill, jacobi, measure, registry, service, sharing
from dsm.bench import watched
measure.ROUNDS, measure._FAULT_BYTES, measure._SCAN_BYTES = 1, 1 << 20, 8 << 20
measure._METADATA_PAGES, measure._OPERATIONS = 1 << 14, 50
jacobi._SIZE, jacobi._SWEEPS = 64, 3
sharing._BARRIERS, sharing._PAUSE_S = 1, 0.0001
dirty._PAGES, fill._BYTES, watched._SECONDS = 64, 1 << 20, 0.05
blocks._OPERATIONS = 100
service._SINGLES, service._BATCHES, service._LARGES, service._LARGE = 20, 2, 1, 1 << 20
clients._FEW, clients._MANY, clients._SECONDS = 2, 4, 0.1
examples._NODES, examples._PLACEMENTS = (2,), ("0",)
examples.OPTIONS["sort"] = examples.PLACED["sort"] = ("--keys", "100000")
for name in set(examples.PLACED) - {"sort"}:
    del examples.PLACED[name]
if __name__ == "__main__":
    import msgspec
    print(msgspec.json.encode(list(registry.ROWS[sys.argv[1]](lambda text: None))).decode())
"""


#: Of the programs one is enough: they differ in their options.
MEASURED = [name for name in ROWS if name == "sort" or name not in examples.OPTIONS]


@pytest.mark.parametrize("name", MEASURED)
def test_every_row_can_be_measured(name, tmp_path):
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    done = subprocess.run(
        [sys.executable, str(script), name], check=True, timeout=100, capture_output=True, text=True
    )
    rows = json.loads(done.stdout)
    assert rows
    assert all(row["value"] > 0 for row in rows)
    assert all(row["floor"] is None or row["floor"] > 0 for row in rows)


def test_json_has_the_promised_keys(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "dsm", "bench", "hit", "--json", str(file)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    rows = json.loads(file.read_text())
    assert rows and all(list(row) == KEYS for row in rows)
