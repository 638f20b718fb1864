"""What a row says, and that every row can be measured (small and once: figures are not judged here)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dsm.bench import measure
from dsm.bench.row import Row, combine, format_table

KEYS = ["row", "value", "unit", "floor", "ratio", "target", "spread", "pager", "fabric", "placement"]


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


def test_a_row_without_floor_is_judged_by_its_value():
    assert Row("metadata", 12.0, "B/page", None, None, 16.0, None).reached
    assert not Row("metadata", 17.0, "B/page", None, None, 16.0, None).reached
    assert Row("atomic", 1.0, "us", 1.0, 1.0, None, 0.0).reached is None


def test_the_table_has_a_line_for_each_row():
    rows = [combine("a", "us", [1.0], [1.0]), Row("metadata", 12.0, "B/page", None, None, 16.0, None)]
    lines = format_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[-1].endswith("reached")


#: Runs in a process of its own: multiprocessing's helper process ends with it.
SMALL = """
import sys
from dsm.bench import measure
from dsm.bench.row import Row
measure.ROUNDS, measure._FAULT_BYTES, measure._SCAN_BYTES = 1, 1 << 20, 8 << 20
measure._METADATA_PAGES, measure._OPERATIONS = 1 << 14, 50
if __name__ == "__main__":
    import msgspec
    print(msgspec.json.encode(list(measure.ROWS[sys.argv[1]](lambda text: None))).decode())
"""


@pytest.mark.parametrize("name", list(measure.ROWS))
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
