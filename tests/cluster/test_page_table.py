"""`node.page_table` on real managers and workers."""

from __future__ import annotations

import os
import signal
import warnings

import numpy as np
import pytest

import dsm
from dsm.cli.status.ask import Conversation
from dsm.coherence.rows import ROW
from dsm.limits import MAX_ROWS
from dsm.testing import Cluster
from dsm.testing.cluster import WorkerFailed
from dsm.wire.control import GetPages, Pages

ITEMS = 512


def _write_own_pages(node, name, pages):
    """Node n writes pages n, n + 2, ...; returns the first address."""
    array = node.array(name, (pages, ITEMS), "i8")
    array[node.node_id :: 2] = node.node_id + 1
    return array.__array_interface__["data"][0]


def _read_all(node, name):
    return int(node.open(name).sum())


def _ping(node, name, turns):
    """Both nodes write page 1 in turn, and nothing else."""
    array = node.array(name, (4, ITEMS), "i8")
    for turn in range(turns):
        node.barrier()
        if turn % 2 == node.rank:
            array[1, node.rank] = turn
    node.barrier()


def _table(node, name, nodes="all", part=slice(None)):
    return node.page_table(node.open(name)[part], nodes)


def _claim(node, name, pages):
    node.array(name, (pages, ITEMS), "i8")[::1000] = 1


def _shape_of(node, name, nodes):
    table = _table(node, name, nodes)
    every = np.arange(len(table))
    count = len(set(table["node"].tolist()))
    ordered = np.array_equal(table["page"], every // count)
    return len(table), ordered, table["page"][table["permissions"] == "rw-"][::count].tolist()[:3]


def _share_falsely(node, name, turns):
    """Both ranks write words of page 0 between barriers; page 1 is rank 1's alone."""
    array = node.array(name, (200, ITEMS), "i8", consistency="release", home=0)
    for turn in range(turns):
        array[0, node.rank] = turn
        if node.rank == 1:
            array[1] = turn
        node.barrier()
        assert array[0, :2].tolist() == [turn, turn]
        node.barrier()


def test_a_row_says_where_its_page_is(two):
    addresses = two.all(_write_own_pages, "where", 6)
    for worker in two.workers:
        table = worker.call(_table, "where")
        assert table["page"].tolist() == [page for page in range(6) for _ in range(2)]
        assert table["node"].tolist() == [0, 1] * 6
        assert (table["address"] == addresses[0] + 4096 * table["page"]).all()
        assert set(table["size"].tolist()) == {4096} and set(table["model"].tolist()) == {"sequential"}
        assert len(set(table["home"].tolist())) == 1, "a block has one directory node"
        assert (table["owner"] == table["page"] % 2).all()
        mine = table["owner"] == table["node"]
        assert set(table["permissions"][mine].tolist()) == {"rw-"}
        assert set(table["state"][mine].tolist()) == {"EXCLUSIVE"}
        assert set(table["permissions"][~mine].tolist()) == {"---"}
        assert set(table["state"][~mine].tolist()) == {"INVALID"}
        assert (table["dirty"] == mine).all() and (table["copyset"] == 1).all()
        assert (table["version"] == mine).all()
        assert np.isnan(table["lease"]).all()


def test_readers_are_counted(two):
    two.all(_write_own_pages, "read", 4)
    two.workers[1].call(_read_all, "read")
    table = two.workers[0].call(_table, "read")
    shared = table["page"] % 2 == 0
    assert (table["copyset"] == np.where(shared, 2, 1)).all()
    assert set(table["permissions"][shared].tolist()) == {"r--"}
    assert set(table["state"][shared].tolist()) == {"SHARED"}
    assert not table["dirty"][shared].any()
    assert table["faults_read"][(table["node"] == 1)].sum() >= 1
    assert table["faults_read"][(table["node"] == 0)].sum() == 0


def test_a_page_that_goes_to_and_fro_stands_out(two):
    two.all(_ping, "ping", 20)
    table = two.workers[0].call(_table, "ping")
    hot = table[table["version"] > 5]
    assert hot["page"].tolist() == [1, 1] and hot["node"].tolist() == [0, 1]
    assert hot["faults_write"].tolist() == hot["version"].tolist() == [10, 10]
    assert not table[table["page"] != 1]["version"].any()


def test_pages_under_release(two):
    two.all(_share_falsely, "several writers", 6)
    for worker in two.workers:
        table = worker.call(_table, "several writers")
        assert set(table["model"].tolist()) == {"release"}
        here, other = table[table["page"] == 0]
        assert (here["home"], other["home"], here["owner"], other["owner"]) == (0, 0, 0, 0)
        assert (here["copyset"], other["copyset"]) == (2, 2)
        # At each barrier node 1 sends what it wrote to the home, and it fetches what the home wrote.
        assert other["faults_read"] + other["faults_write"] >= 6 and other["version"] >= 6
        assert here["version"] >= 6
        untouched = table[table["page"] == 199]
        assert set(untouched["state"].tolist()) == {"INVALID"} and set(untouched["copyset"].tolist()) == {0}
        assert set(untouched["owner"].tolist()) == {-1} and not untouched["version"].any()
        lone = table[table["page"] == 1]
        assert len(set(lone["home"].tolist())) == 1 and len(set(lone["owner"].tolist())) == 1


def _field(node, value):
    array = node.array("leased", (2, ITEMS), "i8", consistency="bounded", max_staleness=20.0)
    if value:
        array[:] = value
    return int(array[0, 0])


def test_copies_under_a_lease(two):
    two.workers[0].call(_field, 7)
    assert two.workers[1].call(_field, 0) == 7
    table = two.workers[0].call(_table, "leased")
    owner, reader = table[table["page"] == 0]
    assert (owner["permissions"], owner["model"], owner["owner"]) == ("rw-", "bounded", 0)
    assert np.isnan(owner["lease"])
    assert reader["permissions"] == "r--" and 0 < reader["lease"] <= 20.0


def test_only_the_nodes_that_are_asked_for(two):
    two.all(_write_own_pages, "who", 4)
    for worker in two.workers:
        here, other = worker.rank, 1 - worker.rank
        assert set(worker.call(_table, "who", "here")["node"].tolist()) == {here}
        assert set(worker.call(_table, "who", other)["node"].tolist()) == {other}
        alone = worker.call(_table, "who", "here")
        decides = alone["home"] == here
        assert (alone["owner"][~decides] == -1).all() and (alone["copyset"][~decides] == -1).all()
        assert (alone["owner"][decides] == alone["page"][decides] % 2).all()


@pytest.mark.parametrize("nodes", ["none", 7, -1, True, None, (0,)])
def test_nodes_that_are_none_are_refused(two, nodes):
    two.all(_write_own_pages, "refused", 4)
    with pytest.raises(dsm.UsageError, match="nodes="):
        two.workers[0].call(_table, "refused", nodes)


def test_a_view_has_the_pages_between_its_lowest_and_highest_byte(two):
    two.all(_write_own_pages, "views", 8)
    ask = two.workers[0].call
    assert ask(_table, "views", "here", (slice(2, 5),))["page"].tolist() == [2, 3, 4]
    assert ask(_table, "views", "here", (slice(1, 8, 3), slice(0, 1)))["page"].tolist() == list(range(1, 8))
    assert ask(_table, "views", "here", (slice(None, None, -2),))["page"].tolist() == list(range(1, 8))
    assert ask(_table, "views", "here", (3, slice(5, 6)))["page"].tolist() == [3]


def _odd_arguments(node):
    empty = node.page_table(node.array("empty", (0, 7), "f8"))
    part = node.page_table(node.array("some", 10, "f8")[3:3])
    region = node.page_table(node.region("raw", 10_000))
    refused = []
    for wrong in (np.zeros(3), [1, 2], "some", None):
        try:
            node.page_table(wrong)
        except dsm.UsageError as error:
            refused.append(str(error))
    return len(empty), len(part), empty.dtype == region.dtype, len(region) // len(node.nodes), refused


def test_empty_arrays_regions_and_what_is_no_array(two):
    empty, part, same, pages, refused = two.workers[0].call(_odd_arguments)
    assert (empty, part, same, pages) == (0, 0, True, 3)
    assert len(refused) == 4 and all("dsm region" in text for text in refused)


def test_a_table_of_many_pieces_has_each_page_once(two):
    pages = 3 * MAX_ROWS + 17
    two.workers[0].call(_claim, "large", pages)
    for nodes, count in (("here", pages), ("all", 2 * pages)):
        total, ordered, written = two.workers[0].call(_shape_of, "large", nodes, timeout=60)
        assert (total, ordered) == (count, True)
        assert written[0] == 0


def _destroyed(node):
    array = node.array("gone", 5000, "f8")
    question = node._ask_pages
    asked = []

    def ask(body):
        if not asked:
            asked.append(body)
            node.destroy("gone")
        return question(body)

    node._ask_pages = ask
    try:
        return [type(error).__name__ for error in _errors(lambda: node.page_table(array))]
    finally:
        del node._ask_pages


def _errors(function):
    try:
        function()
    except dsm.DSMError as error:
        yield error


def test_a_region_that_is_destroyed_meanwhile(two):
    assert two.workers[0].call(_destroyed) == ["ClosedError"]


def _huge(node):
    array = node.array("huge", (1 << 40) // 8, "f8", page_size=4096)
    few = node.page_table(array[: 10 * ITEMS], "here")
    try:
        node.page_table(array)
    except dsm.LimitError as error:
        return len(few), str(error)
    finally:
        node.destroy("huge")


def test_a_table_larger_than_memory_is_refused(two):
    few, said = two.workers[0].call(_huge)
    assert few == 10
    assert f"{2 << 28} rows" in said and "take a part" in said


@pytest.mark.parametrize(
    ("key", "page", "count", "nodes", "error"),
    [
        ("asked", -1, 1, None, dsm.UsageError),
        ("asked", 0, -1, None, dsm.UsageError),
        ("asked", 0, 9, None, dsm.UsageError),
        ("asked", 8, 1, None, dsm.UsageError),
        ("asked", (1 << 63), 1, None, dsm.UsageError),
        ("asked", 0, (1 << 64) - 1, None, dsm.UsageError),
        ("asked", 0, 1, (64,), dsm.UsageError),
        ("asked", 0, 1, (-1,), dsm.UsageError),
        ("nothing", 0, 1, None, dsm.UnknownNameError),
        (77777, 0, 1, None, dsm.ClosedError),
        (-1, 0, 1, None, dsm.ClosedError),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(two, key, page, count, nodes, error):
    two.all(_write_own_pages, "asked", 8)
    with Conversation(two.managers[0].socket) as manager:
        with pytest.raises(error):
            manager.ask(GetPages(key, page, count, nodes), Pages)
        answer, descriptor = manager.ask(GetPages("asked", 0, 8, (0, 1, 63)), Pages)
        assert (answer.nodes, [each.node for each in answer.silent]) == ((0, 1), [63])
        assert os.fstat(descriptor).st_size == 2 * 8 * ROW.itemsize
        os.close(descriptor)


def _warned(node, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = node.page_table(node.open(name))
    return table, [(each.category, str(each.message)) for each in caught]


def test_a_stopped_node_is_named_and_the_others_answer():
    with Cluster(nodes=3, workers=1) as cluster:
        cluster.workers[0].call(_claim, "shared", 2 * MAX_ROWS)
        cluster.managers[2].process.send_signal(signal.SIGSTOP)
        try:
            table, caught = cluster.workers[0].call(_warned, "shared")
        finally:
            cluster.managers[2].process.send_signal(signal.SIGCONT)
        assert set(table["node"].tolist()) == {0, 1} and len(table) == 4 * MAX_ROWS
        [(category, said)] = caught
        assert category is RuntimeWarning and "node 2, which did not answer" in said
        table, caught = cluster.workers[0].call(_warned, "shared")
        assert set(table["node"].tolist()) == {0, 1, 2} and not caught


def test_what_went_away_with_a_node_is_said():
    with Cluster(nodes=3, workers=1) as cluster:
        cluster.workers[2].call(_write_where_node_0_decides, "left")
        table = cluster.workers[0].call(_table, "left")
        assert set(table["owner"].tolist()) == {2}
        cluster.managers[2].process.kill()
        cluster.managers[2].process.wait()
        while len(cluster.workers[0].call(_nodes)) == 3:
            pass
        table = cluster.workers[0].call(_table, "left")
        assert set(table["owner"].tolist()) == {-2} and set(table["node"].tolist()) == {0, 1}
        with pytest.raises(dsm.UsageError, match="live nodes"):
            cluster.workers[0].call(_table, "left", 2)


def _nodes(node):
    return node.nodes


def _write_where_node_0_decides(node, name):
    node.array(name, (3, ITEMS), "i8", home=0)[:] = 1


def _after_close(node, name):
    array = node.open(name)
    node.close()
    node.page_table(array)


def test_a_closed_node_cannot_be_asked():
    with Cluster() as cluster:
        cluster.workers[0].call(_claim, "x", 3)
        with pytest.raises((dsm.ClosedError, dsm.UsageError, WorkerFailed)) as caught:
            cluster.workers[0].call(_after_close, "x")
        assert not isinstance(caught.value, WorkerFailed), caught.value
