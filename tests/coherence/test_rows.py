"""Rows of the page table: what a region says of its pages, and what is believed of what others send."""

from __future__ import annotations

import numpy as np
import pytest

from dsm.coherence.engine import Engine
from dsm.coherence.placement import Placement
from dsm.coherence.rows import GONE, ROW, UNKNOWN, members, parse
from dsm.coherence.states import State
from dsm.coherence.table import LOST
from dsm.types import Region, RegionOptions

PAGES = 3000


def _region(node=0, members=(0, 1, 2), home="first-touch", page_size=4096):
    engine = Engine(node)
    described = Region(1, RegionOptions(PAGES * page_size, page_size=page_size, home=home), 1 << 46, members)
    engine.add_region(described)
    return engine.regions[1], described


@pytest.mark.parametrize("home", ["first-touch", "block", "cyclic", 2])
@pytest.mark.parametrize("page_size", [4096, 1 << 21])
@pytest.mark.parametrize("members", [(0,), (0, 1, 2), (1, 5, 63)])
def test_directories_of_a_range_are_those_of_its_pages(home, page_size, members):
    placement = Placement(_region(members[0], members, home, page_size)[1])
    for page, count in ((0, PAGES), (255, 3), (1000, 1), (777, 1111)):
        expected = [placement.directory(each) for each in range(page, page + count)]
        assert placement.directories(np.arange(page, page + count)).tolist() == expected


def test_every_row_is_what_the_tables_say():
    region, _ = _region(home="cyclic")
    table = region.table
    rng = np.random.default_rng(5)
    table.states[:] = rng.integers(0, len(State), PAGES)
    table.owners[:] = rng.integers(0, 4, PAGES)
    table.owners[::7] = LOST + 2
    table.copysets[:] = rng.integers(0, 1 << 63, PAGES, np.uint64)
    for page in range(0, PAGES, 3):
        table.faults_read.one(page)
    table.faults_write.run(10, 100)
    table.versions.run(50, 1000)
    rows = region.rows(20, 2900)
    for index, row in enumerate(rows):
        page = 20 + index
        state = State(table.state[page])
        home = region.placement.directory(page)
        owner = table.owner[page]
        assert row["state"] == state
        assert row["level"] == {"EXCLUSIVE": 2, "SHARED": 1, "UPGRADING": 1, "DOWNGRADING": 1}.get(
            state.name, 0
        )
        assert row["dirty"] == (state.name in ("EXCLUSIVE", "DOWNGRADING"))
        assert row["home"] == home
        assert row["owner"] == (UNKNOWN if home else GONE if owner >= LOST else owner - 1)
        assert row["copyset"] == (UNKNOWN if home else table.copyset[page].bit_count())
        assert row["faults_read"] == (page % 3 == 0)
        assert row["faults_write"] == (10 <= page < 110)
        assert row["version"] == (50 <= page < 1050)
        assert row["lease"] == UNKNOWN
    assert len(parse(rows.tobytes(), 2900)) == 2900


def test_a_copy_whose_lease_is_over_is_none():
    engine = Engine(0)
    options = RegionOptions(PAGES * 4096, consistency="bounded", max_staleness_ns=10**9)
    engine.add_region(Region(1, options, 1 << 46, (0, 1)))
    table = engine.regions[1].table
    table.states[:] = [State.SHARED, State.UPGRADING, State.EXCLUSIVE, State.INVALID, State.SHARED] * (
        PAGES // 5
    )
    table.ends[:] = [500, 501, 0, 200, 600] * (PAGES // 5)
    rows = engine.rows(1, 5, 5, now=400)
    assert rows["lease"].tolist() == [100, 101, UNKNOWN, UNKNOWN, 200]
    assert rows["level"].tolist() == [1, 1, 2, 0, 1]
    rows = engine.rows(1, 5, 5, now=501)
    assert rows["lease"].tolist() == [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 99]
    assert rows["level"].tolist() == [0, 0, 2, 0, 1]
    assert rows["state"].tolist() == [
        State.INVALID,
        State.WRITING,
        State.EXCLUSIVE,
        State.INVALID,
        State.SHARED,
    ]
    assert table.states[5] == State.SHARED, "asking changes nothing"


def test_bits_of_a_copyset():
    assert members(np.array([0, 1, 3 << 62, (1 << 64) - 1], np.uint64)).tolist() == [0, 1, 2, 64]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("home", 64), ("home", -2), ("owner", 64), ("owner", -3), ("copyset", 65), ("copyset", -2),
        ("state", max(State) + 1), ("level", 3), ("dirty", 2), ("lease", -2), ("lease", (1 << 62) + 1),
    ],
)  # fmt: skip
def test_rows_that_no_node_means_are_refused(column, value):
    rows = _region()[0].rows(0, 5)
    assert parse(rows.tobytes(), 5) is not None
    rows[column][3] = value
    assert parse(rows.tobytes(), 5) is None


@pytest.mark.parametrize("length", [0, 1, 5 * ROW.itemsize - 1, 5 * ROW.itemsize + 1, 6 * ROW.itemsize])
def test_rows_of_another_length_are_refused(length):
    assert parse(bytes(length), 5) is None
    assert parse(b"", 0) is not None
