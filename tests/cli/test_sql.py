"""`dsm pages` and `dsm sql` on real clusters, and what a question may not do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from dsm.cli import main
from dsm.cli import pages as pages_verb
from dsm.cli import sql as sql_verb
from dsm.cli.sql import contents
from dsm.cli.sql.answer import as_json, as_text
from dsm.cli.sql.database import Database, QuestionError
from dsm.manager.metadata.options import SYNC_KINDS
from dsm.testing import Cluster, ForkServer
from dsm.wire import status
from support import wait_until

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"


def _dsm(*words, timeout=60, **environment):
    return subprocess.run(
        [sys.executable, "-m", "dsm", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )


def _here(*words):
    """Run the command in this process: what it says of wrong words needs no process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def _create(node, name, pages=8):
    array = node.array(name, (pages, 512), "i8")
    array[node.node_id :: 2] = node.node_id


def _write_in_turn(node, name, turns):
    """Both ranks write page 3, each a word of its own; everybody reads page 5, which nobody writes."""
    array = node.open(name)
    for turn in range(turns):
        node.barrier()
        if turn % 2 == node.rank:
            array[3, node.rank] = turn
        assert array[5].sum() >= 0
    node.barrier()


def _hold_lock(node, name):
    node.lock(name).acquire()


def _meet(node, name):
    node.barrier(name, parties=2)


def _anonymous(node):
    node.kept = node.array(None, 2000, "f8")
    return node._regions.listed(), node.page_table(node.kept)["page"].size


@pytest.fixture(scope="module")
def cluster():
    with ForkServer(["patient"]):  # a manager of this one that is only slow is not taken for a silent one
        cluster = Cluster(nodes=2, workers=1)
    with cluster:
        cluster.all(_create, "grid")
        cluster.all(_create, "owned")
        cluster.all(_write_in_turn, "grid", 20)
        yield cluster


@pytest.fixture(scope="module")
def at(cluster):
    return ("--at", cluster.managers[0].socket)


def _rows(*words):
    done = _here(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


# -- dsm pages -------------------------------------------------------------------------------------------


def test_pages_are_listed_by_page_and_node(at):
    done = _dsm("pages", "grid", *at)
    assert done.returncode == 0, done.stderr
    head, names, *lines = done.stdout.splitlines()
    assert head == "'grid' (region 1): 8 pages of 4096 bytes, sequential; rows of node 0 and 1"
    assert names.split()[:3] == ["page", "node", "address"]
    assert [line.split()[:2] for line in lines] == [[str(p), str(n)] for p in range(8) for n in range(2)]
    [cells] = [line.split() for line in lines if line.split()[:2] == ["6", "0"]]
    assert cells[2].startswith("0x") and "EXCLUSIVE" in cells and "rw-" in cells


def test_a_condition_and_an_order_are_sql(at):
    hot = _rows("pages", "grid", "--where", "faults_write > 5", "--order", "node desc", *at)
    assert [(row["page"], row["node"]) for row in hot] == [(3, 1), (3, 0)]
    assert all(row["faults"] == row["faults_read"] + row["faults_write"] for row in hot)
    assert all(row["lease"] is None and row["name"] == "grid" for row in hot)
    [row] = _rows("pages", "grid", "--where", "state = 'SHARED'", "--node", "1", "--limit", "1", *at)
    assert (row["page"], row["copyset"], row["permissions"]) == (5, 2, "r--")


def test_parts_and_limits(at):
    done = _dsm("pages", "grid", "--limit", "3", *at)
    assert len(done.stdout.splitlines()) == 2 + 3 and "(3 of 16 rows; --limit N shows more)" in done.stderr
    assert len(_rows("pages", "grid", "--limit", "0", *at)) == 16
    assert [row["page"] for row in _rows("pages", "grid", "--pages", "6:", "--node", "0", *at)] == [6, 7]
    assert [row["page"] for row in _rows("pages", "grid", "--pages", ":2", "--node", "1", *at)] == [0, 1]
    assert _rows("pages", "grid", "--pages", "3:3", *at) == []
    done = _dsm("pages", "grid", "--where", "0", *at)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2


def test_an_anonymous_array_is_named_by_its_number(cluster, at):
    cluster.workers[0].call(_anonymous)
    [[number]] = [
        row.values() for row in _rows("sql", "select distinct region from regions where name is null", *at)
    ]
    done = _dsm("pages", str(number), "--node", "0", *at)
    assert done.stdout.startswith(f"anonymous (region {number}): 4 pages"), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "there is no array or region 'nobody' in this cluster"),
        (["77"], "region 77 does not exist (any more)"),
        (["grid", "--where", "fault > 1"], "no such column: fault; there are"),
        (["grid", "--where", "faults >"], "syntax error"),
        (["grid", "--where", "1) union select 1 --"], "syntax error"),
        (["grid", "--order", "nosuch"], "no such column: nosuch"),
        (["grid", "--where", "page in (select page from waits)"], "no such table: waits"),
        (["grid", "--node", "5"], "--node 5: no live node of the cluster, which has 0 and 1"),
        (["grid", "--pages", "3"], "--pages 3: the region has pages 0:8"),
        (["grid", "--pages", "5:9"], "--pages 5:9"),
        (["grid", "--pages", "4:2"], "--pages 4:2"),
        (["grid", "--pages", "a:b"], "--pages a:b"),
        (["grid", "--limit", "-1"], "--limit"),
        (["grid", "--timeout", "0"], "--timeout"),
        (["grid", "--timeout", "nan"], "--timeout"),
    ],
)
def test_wrong_words_are_answered_with_what_is_right(at, words, said):
    done = _here("pages", *words, *at)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr
    if "no such column" in said:
        assert "faults_read" in done.stderr


# -- dsm sql ---------------------------------------------------------------------------------------------


def test_which_pages_go_to_and_fro(at):
    question = (
        "select page, sum(version) as moves from pages where name = 'grid' "
        "group by page having moves > 4 order by moves desc"
    )
    assert [row["page"] for row in _rows("sql", question, *at)] == [3]


def test_who_owns_what(at):
    question = (
        "select owner, count(distinct page) as pages from pages where name = 'owned' "
        "group by owner order by owner"
    )
    assert _rows("sql", question, *at) == [{"owner": 0, "pages": 4}, {"owner": 1, "pages": 4}]


def test_objects_have_a_table_for_each_kind(cluster, at):
    cluster.workers[0].call(_hold_lock, "held")
    waiting = cluster.workers[1].start(_meet, "meeting")
    wait_until(lambda: _rows("sql", "select * from barriers where waiting = 1", *at))
    [lock] = _rows("sql", "select * from locks", *at)
    assert (lock["name"], lock["kind"], lock["holder_node"], lock["waiting"]) == ("held", "lock", 0, 0)
    [barrier] = _rows("sql", "select * from barriers where name = 'meeting'", *at)
    assert (barrier["value"], barrier["holder_node"]) == (2, None)
    [party] = _rows("sql", "select * from parties where kind = 'barrier' and name = 'meeting'", *at)
    assert (party["role"], party["node"], party["place"]) == ("waiting", 1, 0)
    [wait] = _rows("sql", "select * from waits where node = 1", *at)
    assert (wait["kind"], wait["name"], wait["rank"]) == ("barrier", "meeting", 1)
    assert _rows("sql", "select * from semaphores", *at) == []
    cluster.workers[0].call(_meet, "meeting")
    waiting.result()


def test_tables_can_be_joined(cluster, at):
    question = (
        "select w.pid, n.socket, r.name from workers w join nodes n using (node) "
        "join regions r using (node) where r.name = 'grid' order by w.rank"
    )
    rows = _rows("sql", question, *at)
    assert [row["pid"] for row in rows] == [worker.pid for worker in cluster.workers]
    assert [row["socket"] for row in rows] == [manager.socket for manager in cluster.managers]


def test_without_a_question_the_tables_are_listed():
    done = _dsm("sql")
    assert done.returncode == 0
    for word in ("pages:", "faults_read", "regions:", "rwlocks, semaphores"):
        assert word in done.stdout


def test_more_rows_than_are_shown(at):
    done = _dsm("sql", "select * from pages where name = 'grid'", "--limit", "5", *at)
    assert len(done.stdout.splitlines()) == 6 and "more than 5 rows" in done.stderr
    told = json.loads(_dsm("sql", "select 1", "--json", *at).stdout)
    assert told == {"more": False, "silent": [], "rows": [{"1": 1}]}


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("select * from page", "no such table: page; there are"),
        ("select owners from pages", "no such column: owners; there are"),
        ("select frobnicate(1)", "no such function: frobnicate; there are"),
        ("selec 1", "syntax error"),
        ("select 'a", "unrecognized token"),
        ("select", "incomplete input"),
        ("", "there is no question"),
        ("-- nothing", "incomplete input"),
        ("select 1; select 2", "one statement at a time"),
        ("insert into pages(page) values (1)", "only reading is possible"),
        ("drop table pages", "only reading is possible"),
        ("create table t(a)", "only reading is possible"),
        ("attach database 'stolen' as s", "only reading is possible"),
        ("vacuum into 'stolen'", "only reading is possible"),
        ("pragma journal_mode = off", "only reading is possible"),
        ("begin", "only reading is possible"),
        ("select load_extension('stolen')", "only reading is possible"),
        ("explain attach database 'stolen' as s", "only reading is possible"),
        ("select zeroblob(1000000000)", "too big"),
        ("select * from nodes where 1 = (select 1 from sqlite_dbpage)", "no such table"),
        ("select count(*) from pages where name = 'x' or nosuch", "no such column: nosuch"),
    ],
)
def test_wrong_and_forbidden_questions(at, tmp_path, monkeypatch, question, said):
    monkeypatch.chdir(tmp_path)
    done = _here("sql", question, *at)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr
    if "there are" in said:
        assert "faults_read" in done.stderr and "parties:" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_question_without_end_is_given_up(at):
    done = _dsm("sql", ENDLESS, "--timeout", "0.2", *at)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no answer within 0.2 s (--timeout)" in done.stderr


def test_ctrl_c_ends_a_question(at):
    before = _cpu_of_children_s()
    assert _dsm("sql", "select 1", *at).returncode == 0
    whole = _cpu_of_children_s() - before
    command = [sys.executable, "-m", "dsm", "sql", ENDLESS, *at]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        # It computes: all that comes before takes less processor time than a question that ends.
        wait_until(lambda: _cpu_s(asking.pid) > 1.5 * whole + 0.1, 60)
        asking.send_signal(signal.SIGINT)
        out, err = asking.communicate(timeout=20)
    assert (asking.returncode, out, err) == (130, "", "")


def _cpu_of_children_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_s(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_output_that_nobody_reads_is_no_traceback(at):
    for words in (
        ["pages", "grid"],
        ["sql", "select * from nodes"],
        ["sql", "select * from nodes", "--json"],
    ):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "dsm", *words, *at]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")


def test_nobody_to_ask_is_status_1():
    for words in (["pages", "grid"], ["sql", "select 1"]):
        done = _dsm(*words, "--at", "@dsm-nobody")
        assert done.returncode == 1 and "no manager answers at @dsm-nobody" in done.stderr


def test_dsm_node_names_the_cluster(cluster):
    told = json.loads(
        _dsm("sql", "select node from nodes", "--json", DSM_NODE=cluster.managers[1].socket).stdout
    )
    assert [row["node"] for row in told["rows"]] == [0, 1]


def test_of_several_clusters_one_must_be_chosen(cluster):
    with Cluster(1) as other:
        done = _dsm("sql", "select 1", DSM_NODE="")
        assert done.returncode == 2 and "choose one with --at" in done.stderr
        assert other.managers[0].socket in done.stderr


def test_more_pages_than_anybody_reads_are_refused(cluster, at):
    cluster.workers[0].call(_huge)
    try:
        done = _dsm("pages", "huge", "--where", "faults > 1", *at)
        assert done.returncode == 2
        assert f"region 'huge' has {2 << 24} rows" in done.stderr and "--pages LOW:HIGH" in done.stderr
        done = _dsm("sql", "select count(*) from pages", *at)
        assert done.returncode == 2 and "--region" in done.stderr and "'huge'" in done.stderr
        assert len(_rows("pages", "huge", "--limit", "7", *at)) == 7
        assert _rows("pages", "huge", "--pages", "1000000:1000003", "--where", "faults > 1", *at) == []
        [row] = _rows("sql", "select count(*) as n from pages", "--region", "grid", *at)
        assert row["n"] == 16
    finally:
        cluster.workers[0].call(_end, "huge")


def _huge(node):
    node.array("huge", 1 << 33, "f8")


def _end(node, name):
    node.destroy(name)


def test_a_stopped_node_is_named_and_the_others_answer():
    with Cluster(nodes=3, workers=1) as cluster:
        cluster.workers[0].call(_create, "grid")
        stopped = cluster.managers[2]
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            done = _dsm("pages", "grid", "--json", "--at", cluster.managers[0].socket)
            told = json.loads(done.stdout)
            assert done.returncode == 0 and told["silent"] == [2] and told["total"] == 16
            assert {row["node"] for row in told["rows"]} == {0, 1}
            sentence = f"node 2 (pid {stopped.pid}) does not answer: stopped (SIGSTOP); its rows are missing"
            assert sentence in done.stderr and f"`kill -CONT {stopped.pid}` lets it go on" in done.stderr
            assert time.monotonic() - began < 10
            question = "select node, answered, pid, uptime_s from nodes order by node"
            done = _dsm("sql", question, "--at", cluster.managers[2].socket, "--json")
            rows = json.loads(done.stdout)["rows"]
            assert [row["answered"] for row in rows] == [1, 1, 0]
            assert (rows[2]["pid"], rows[2]["uptime_s"]) == (stopped.pid, None)
            assert sentence in done.stderr
        finally:
            stopped.process.send_signal(signal.SIGCONT)


# -- the parts -------------------------------------------------------------------------------------------


def test_every_value_of_a_status_has_a_column():
    party = status.PartyStatus(1, 2, 3, 4.5)
    objects = (
        status.ObjectStatus(7, "lock", "l", 0, party, (party, party), 5, True),
        status.ObjectStatus(8, "novelty", "n", 0),
    )
    waits = (status.Wait("read", 1, "x", 0.5, 99, 3, 1, 0, (0, 2)),)
    node = status.NodeStatus(
        0, "c" * 32, 1, "a:1", "@dsm-x", 4, "S", 1.0, 2.0, 3, (0, 2),
        workers=(status.WorkerStatus(5, 6, 7, "S", 0.1, waits),), objects=objects,
        transactions=(status.Transaction(1, 2, 3, True, 0, (1, 2), ()),),
    )  # fmt: skip
    cluster = status.ClusterStatus("c" * 32, 1, (node,), (status.SilentNode(2, "b:1", "", 9, "T", "@dsm-y"),))
    database = Database(contents.TABLES, contents.kinds(cluster))
    for name, rows in contents.rows(cluster):
        database.fill(name, rows)

    def ask(question):
        return database.ask(question, 0, 10)[1]

    assert ask("select node, members, workers, objects, answered from nodes") == [
        (0, "0,2", 1, 2, 1),
        (2, None, None, None, 0),
    ]
    assert ask("select address, socket, pid, state from nodes where not answered") == [
        ("b:1", "@dsm-y", 9, "T")
    ]
    assert ask("select holder_worker, holder_since_s, waiting, value, damaged from locks") == [
        (2, 4.5, 2, 5, 1)
    ]
    assert ask("select object, holder_node from noveltys") == [(8, None)]
    assert ask("select role, place, worker from parties") == [
        ("holder", 0, 2),
        ("waiting", 0, 2),
        ("waiting", 1, 2),
    ]
    assert ask("select worker, rank, page, asked from waits") == [(5, 6, 3, "0,2")]
    assert ask('select "write", missing, queue from transactions') == [(1, "1,2", "")]
    database.close()


def test_what_a_question_reads_is_known_without_computing():
    database = Database(contents.TABLES, SYNC_KINDS)
    assert "pages" in database.tables_of("select count(*) from pages")
    assert "pages" in database.tables_of("select 1 where exists (select 1 from nodes, (select * from pages))")
    assert "pages" not in database.tables_of("select * from locks, nodes")
    assert "pages" not in database.tables_of(ENDLESS)
    with pytest.raises(QuestionError, match="no such table"):
        database.tables_of("select * from nowhere")


def test_a_handler_of_ctrl_c_is_put_back():
    database = Database(contents.TABLES)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(QuestionError):
        database.ask("select nothing", 0, 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_values_as_text_and_json():
    rows = [(None, 1.5, b"\x01", "naïve\x1b"), (1, float("inf"), b"", "x")]
    assert "\x1b" not in as_text("abcd", rows) and "01" in as_text("abcd", rows)
    told = json.loads(as_json(["a", "a", "b", "a_2"], rows, more=True))
    assert told["rows"][0] == {"a": None, "a_2": 1.5, "b": "01", "a_2_2": "naïve\x1b"}
    assert told["rows"][1]["a_2"] is None and told["more"] is True
    assert as_text(["a", "b"], []) == "a  b"


def test_the_verbs_share_their_limits():
    assert pages_verb.MAX_TABLE_ROWS == sql_verb.MAX_TABLE_ROWS
