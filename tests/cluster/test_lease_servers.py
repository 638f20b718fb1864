"""Leases of servers become the cluster's when a worker opens them: whole, with their keys and time."""

from __future__ import annotations

import signal
import threading
import time

import pytest

import dsm
import support
from dsm.memory.leases import LeaseTable
from dsm.memory.token import token_of
from dsm.testing import Cluster
from dsm.wire import leasing as wire
from dsm.worker import leasing

LONG_MS = 300_000
CONTENTS = bytes(range(256)) * 40
WRITE, READ = b"w" * 16, b"r" * 16


@pytest.fixture(scope="module")
def cluster():
    """Ranks 0 and 1 on node 0, ranks 2 and 3 on node 1; 1 and 2 are lease servers."""
    with Cluster(nodes=2, workers=2) as cluster:
        for rank in (1, 2):
            cluster.workers[rank].call(serve)
        yield cluster


@pytest.fixture
def fresh():
    with Cluster(nodes=2, workers=1) as cluster:
        cluster.workers[1].call(serve)
        yield cluster


# ---- functions that workers run --------------------------------------------------------------------


class Server:
    """A lease server without a network: a table and bytes."""

    def __init__(self, node):
        self.node = node
        self.table = LeaseTable()
        self.asked = 0
        self.fail = None
        self.filling = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.stop = leasing.serve_demands(node, self.demand)

    def add(self, identity, contents=CONTENTS, duration_ms=LONG_MS):
        self.table.add(identity, WRITE, READ, len(contents), contents, now_ms(), duration_ms)

    def demand(self, demand):
        self.asked += 1
        try:
            record = self.table.find(demand.id, demand.key, now_ms())
        except dsm.UnknownLeaseError:
            return False
        digests = record.write_digest, record.read_digest
        remaining = record.remaining_ms(now_ms())
        leasing.adopt(
            self.node, record.id, *digests, record.nbytes, remaining, lambda to: self.fill(record, to)
        )
        self.table.move(record.id)
        return True

    def fill(self, record, to):
        to[: record.nbytes // 2] = record.place[: record.nbytes // 2]
        self.filling.set()
        assert self.go_on.wait(20)
        if self.fail is not None:
            raise self.fail
        to[record.nbytes // 2 :] = record.place[record.nbytes // 2 :]


servers = []


def now_ms():
    return time.monotonic_ns() // 1_000_000


def serve(node):
    servers.append(Server(node))


def add(node, identity, contents=CONTENTS, duration_ms=LONG_MS, server=0):
    servers[server].add(identity, contents, duration_ms)


def hold(node):
    """Stop in the middle of the next filling."""
    servers[0].filling.clear()
    servers[0].go_on.clear()


def is_filling(node):
    return servers[0].filling.is_set()


def go_on(node, fail=None):
    servers[0].fail = fail
    servers[0].go_on.set()


def has(node, identity):
    return any(identity in server.table for server in servers)


def asked(node):
    return [server.asked for server in servers]


def open_and_read(node, identity, key=WRITE):
    lease = node.open_lease(token_of(identity, key))
    return lease.get(), lease.writable, lease.expires_in


def open_write_read(node, identity, data):
    lease = node.open_lease(identity, WRITE)
    lease.set(data)
    lease.renew("10m")
    return lease.get(0, len(data)), lease.expires_in


def let_run_out(node, identity):
    """Let a lease that nobody has opened yet run out now."""
    node._connection.session.call(wire.RenewLease(identity, WRITE, 1), wire.LeaseTime)


def release(node, identity):
    node.open_lease(identity, WRITE).release()


def open_while_filling(node, identity):
    """Open a lease of this process's server while it is filled for somebody else; read it afterwards."""
    opened = []
    waiting = node._connection.session._waiting
    before = set(waiting)
    opener = threading.Thread(target=lambda: opened.append(node.open_lease(identity, WRITE)))
    opener.start()
    support.wait_until(lambda: set(waiting) - before)
    node.leases()  # asked behind it and answered: the coordinator knows that it is wanted
    servers[0].go_on.set()
    opener.join(20)
    support.wait_until(lambda: identity not in servers[0].table)
    return opened[0].get()


def release_and_use(node, identity):
    """Return what uses of its memory raise once it is released."""
    lease = node.open_lease(identity, WRITE)
    array = lease.array()
    node.open_lease(identity, WRITE).release()
    raised = []
    for use in (array.sum, lease.get):
        try:
            use()
        except dsm.DSMError as error:
            raised.append(type(error).__name__)
    return raised


def listed(node):
    return [info.id.bytes for info in node.leases()]


def second_server_opens_of_first(node, identity):
    """Two servers in one process: what one does not have it opens from the other."""
    stop = Server(node).stop
    try:
        return open_and_read(node, identity)
    finally:
        stop()


# ---- a lease becomes the cluster's -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "opener"),
    [(s, o) for s in (1, 2) for o in range(4) if s != o],  # it knows what it has
)
def test_whoever_opens_it_gets_all_of_it(cluster, server, opener):
    identity = bytes([server, opener]) * 8
    cluster.workers[server].call(add, identity)
    contents, writable, remaining = cluster.workers[opener].call(open_and_read, identity)
    assert contents == CONTENTS and writable
    assert LONG_MS / 1000 - 30 < remaining <= LONG_MS / 1000 + 0.001
    assert not cluster.workers[server].call(has, identity)
    before = cluster.workers[server].call(asked)
    for worker in cluster.workers:  # also in its former server
        assert worker.call(open_and_read, identity, READ)[:2] == (CONTENTS, False)
    assert cluster.workers[server].call(asked) == before, "the coordinator has it now"
    assert cluster.workers[server].call(open_write_read, identity, b"new")[0] == b"new"
    cluster.workers[3].call(release, identity)
    for worker in cluster.workers:
        with pytest.raises(dsm.LeaseExpiredError):
            worker.call(open_and_read, identity)
    assert cluster.workers[0].call(listed) == []


def test_what_no_server_has_is_unknown(cluster):
    with pytest.raises(dsm.UnknownLeaseError):
        cluster.workers[0].call(open_and_read, b"nobody has this!")
    with pytest.raises(dsm.UnknownLeaseError):
        cluster.workers[1].call(open_and_read, b"nobody has this!")


def test_a_wrong_key_gets_nothing_and_changes_nothing(cluster):
    identity = b"wrong key" + bytes(7)
    cluster.workers[2].call(add, identity)
    with pytest.raises(dsm.NotPermittedError):
        cluster.workers[0].call(open_and_read, identity, b"?" * 16)
    assert cluster.workers[2].call(has, identity)
    assert cluster.workers[0].call(open_and_read, identity, READ) == (
        CONTENTS,
        False,
        pytest.approx(300, abs=30),
    )
    cluster.workers[0].call(release, identity)


def test_what_has_run_out_at_its_server_is_expired(cluster):
    identity = b"run out" + bytes(9)
    cluster.workers[2].call(add, identity, b"x", 1)
    support.wait_until(lambda: _error(cluster.workers[0], identity) == "LeaseExpiredError")


def _error(worker, identity):
    try:
        worker.call(open_and_read, identity)
    except dsm.DSMError as error:
        return type(error).__name__
    return None


def test_two_who_open_it_at_once_share_one(cluster):
    identity = b"at once" + bytes(9)
    cluster.workers[2].call(add, identity)
    futures = [cluster.workers[rank].start(open_and_read, identity) for rank in (0, 1, 3)]
    assert [future.result()[0] for future in futures] == [CONTENTS] * 3
    assert cluster.workers[0].call(listed) == [identity]
    cluster.workers[0].call(release, identity)


def test_nobody_sees_it_half_filled(cluster):
    identity = b"half filled" + bytes(5)
    cluster.workers[2].call(add, identity)
    cluster.workers[2].call(hold)
    first = cluster.workers[0].start(open_and_read, identity)
    support.wait_until(lambda: cluster.workers[2].call(is_filling))
    late = cluster.workers[1].start(open_and_read, identity)
    cluster.workers[2].call(go_on)
    assert first.result()[0] == late.result()[0] == CONTENTS
    cluster.workers[0].call(release, identity)


def test_a_server_that_fails_while_it_fills_keeps_its_lease(cluster):
    identity = b"fails" + bytes(11)
    cluster.workers[2].call(add, identity)
    cluster.workers[2].call(go_on, dsm.LimitError("the server has no room to copy"))
    with pytest.raises(dsm.LimitError, match="no room to copy"):
        cluster.workers[0].call(open_and_read, identity)
    assert cluster.workers[0].call(listed) == []
    cluster.workers[2].call(go_on, ZeroDivisionError("a bug"))
    with pytest.raises(dsm.InternalError, match="its lease server failed"):
        cluster.workers[0].call(open_and_read, identity)
    cluster.workers[2].call(go_on)
    assert cluster.workers[0].call(open_and_read, identity)[0] == CONTENTS
    cluster.workers[0].call(release, identity)


def test_a_lease_that_runs_out_while_it_is_filled_is_expired(cluster):
    identity = b"too slow" + bytes(8)
    cluster.workers[2].call(add, identity)
    cluster.workers[2].call(hold)
    opener = cluster.workers[0].start(open_and_read, identity)
    support.wait_until(lambda: cluster.workers[2].call(is_filling))
    cluster.workers[1].call(let_run_out, identity)
    support.wait_until(lambda: cluster.workers[1].call(listed) == [])
    cluster.workers[2].call(go_on)
    with pytest.raises(dsm.LeaseExpiredError):
        opener.result()
    with pytest.raises(dsm.LeaseExpiredError):
        cluster.workers[1].call(open_and_read, identity)


def test_a_server_opens_its_own_leases_as_leases(cluster):
    """What the server mapped to fill it is not what its own threads map to use it."""
    for number in range(20):
        identity = b"own" + bytes([number]) * 13
        cluster.workers[1].call(add, identity)
        assert cluster.workers[1].call(open_write_read, identity, b"own")[0] == b"own"
        assert cluster.workers[0].call(open_and_read, identity)[0][:4] == b"own\3"
        assert cluster.workers[1].call(release_and_use, identity) == ["LeaseExpiredError"] * 2


def test_a_server_that_opens_a_lease_while_it_fills_it_keeps_it(cluster):
    identity = b"while it fills" + bytes(2)
    cluster.workers[1].call(add, identity)
    cluster.workers[1].call(hold)
    other = cluster.workers[0].start(open_and_read, identity)
    support.wait_until(lambda: cluster.workers[1].call(is_filling))
    assert cluster.workers[1].call(open_while_filling, identity) == CONTENTS
    assert other.result()[0] == CONTENTS
    cluster.workers[1].call(release, identity)


def test_servers_of_one_process_open_each_others_leases(cluster):
    identity = b"one process" + bytes(5)
    cluster.workers[1].call(add, identity)
    assert cluster.workers[1].call(second_server_opens_of_first, identity)[0] == CONTENTS
    cluster.workers[1].call(release, identity)


# ---- deaths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["worker", "manager"])
def test_the_death_of_a_server_that_fills_ends_the_wait(fresh, who):
    identity = b"dies" + bytes(12)
    fresh.workers[1].call(add, identity)
    fresh.workers[1].call(hold)
    opener = fresh.workers[0].start(open_and_read, identity)
    support.wait_until(lambda: fresh.workers[1].call(is_filling))
    process = (fresh.workers if who == "worker" else fresh.managers)[1].process
    process.kill()
    process.wait()
    with pytest.raises(dsm.UnknownLeaseError):
        opener.result()
    assert fresh.workers[0].call(listed) == []


def test_a_server_that_is_stopped_does_not_have_it_for_ever(fresh):
    fresh.workers[1].process.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(fresh.workers[1].pid) == "T")
    with pytest.raises(dsm.PageTimeoutError, match="worker 0 of node 1, which does not answer"):
        fresh.workers[0].call(open_and_read, b"i" * 16)
    fresh.workers[1].process.send_signal(signal.SIGCONT)
    support.wait_until(lambda: _error(fresh.workers[0], b"i" * 16) == "UnknownLeaseError")


def test_what_was_given_to_the_cluster_outlives_its_server(fresh):
    identity = b"outlives" + bytes(8)
    fresh.workers[1].call(add, identity)
    assert fresh.workers[0].call(open_and_read, identity)[0] == CONTENTS
    fresh.workers[1].kill()
    fresh.workers[1].process.wait()
    assert fresh.workers[0].call(open_and_read, identity)[0] == CONTENTS
