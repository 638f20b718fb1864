"""Leases of the cluster through a server, in one process: what fails on the way, and what is counted."""

import contextlib
import threading

import pytest

import dsm
from dsm.errors import Status
from dsm.server import cluster as server_cluster
from dsm.wire import leases as wire
from dsm.wire.leases import Op
from leasing import Raw
from support import wait_until


@pytest.fixture
def mapped(node):
    with node.lease("100K", 60) as lease:
        yield lease


def _shown(lease):
    return lease.id.bytes + lease.key


def test_a_bug_while_a_lease_is_looked_for_is_answered_and_costs_no_thread(server, mapped, monkeypatch):
    def fails(token):
        raise OSError("no descriptors")

    with Raw(server.address) as raw:
        with monkeypatch.context() as broken:
            broken.setattr(server._service.cluster, "_opened", fails)
            for _ in range(10):
                status, _, message, _, _ = raw.ask(Op.INFO, token=_shown(mapped))
                assert status == Status.INTERNAL and b"no descriptors" in message
        assert raw.ask(Op.INFO, token=_shown(mapped))[0] == Status.OK


def _starts_no(name, monkeypatch):
    def start(thread):
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        real(thread)

    real = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_server_that_can_start_no_thread_says_so_and_starts_one_later(node, mapped, monkeypatch):
    with dsm.Server(size="1M", node=node) as server, Raw(server.address) as raw:
        with monkeypatch.context() as full:
            _starts_no("dsm-server-cluster", full)
            for _ in range(6):
                status, _, message, _, _ = raw.ask(Op.INFO, token=_shown(mapped))
                assert status == Status.LIMIT and b"ask again later" in message
                assert raw.ask(Op.LIST, count=10)[0] == Status.LIMIT
        assert raw.ask(Op.INFO, token=_shown(mapped))[0] == Status.OK
        with monkeypatch.context() as full:
            _starts_no("dsm-server-cluster", full)  # those that are there do it
            for _ in range(6):
                assert raw.ask(Op.GET, token=_shown(mapped), count=1)[0] == Status.OK


def test_a_demand_for_which_no_thread_can_be_started_is_answered(node, server, client, monkeypatch):
    with client.lease(100, 60) as lease:
        lease.set(b"abc")
        with monkeypatch.context() as full:
            _starts_no("dsm-demand", full)
            for _ in range(10):  # more than are handled at once
                with pytest.raises(dsm.LimitError, match="ask again later"):
                    node.open_lease(lease.token)
        assert node.open_lease(lease.token).get(0, 3) == b"abc"


def test_a_move_that_does_not_end_is_waited_for_in_vain_only_so_long(node, server, client, monkeypatch):
    monkeypatch.setattr(server_cluster, "DEMAND_WAIT_S", 0.1)
    service = server._service
    with client.lease(100, 60) as lease:
        move = service.ask(lambda: service.book.begin_move(lease._shown, service.now_ms()))
        try:
            with pytest.raises(dsm.PageTimeoutError, match="does not answer"):
                node.open_lease(lease.token)
        finally:
            service.ask(lambda: service.end_move(move.place, False))
        node.open_lease(lease.token).release()


def test_a_server_that_has_ended_hides_no_lease_of_another(node):
    with (
        dsm.Server(size="1M", node=node) as ended,  # it is asked first
        dsm.Server(size="1M", node=node) as other,
        dsm.connect(other.address) as client,
    ):
        ended._service.stop()
        assert ended.ended.wait(10)
        taken = client.lease(100, 60)
        taken.set(b"here")
        with node.open_lease(taken.token) as lease:
            assert lease.get(0, 4) == b"here"
        with pytest.raises(dsm.UnknownLeaseError):
            node.open_lease("0" * 32 + "." + "0" * 32)


def test_requests_for_leases_of_the_cluster_are_counted_as_all_others(client, mapped):
    lease = client.open(mapped.token)
    before = client.figures()
    lease.set(b"x" * 100)
    lease.set(b"x" * 90_000)
    assert lease.get(0, 2) == b"xx"
    reader = client.open(mapped.read_token)
    with pytest.raises(dsm.NotPermittedError):
        client._renew(reader._shown, 1000)
    after = client.figures()
    changes = {name: after[name] - before[name] for name in ("sets", "gets", "refused")}
    assert changes == {"sets": 2, "gets": 1, "refused": 1}


def test_a_list_is_made_once_for_all_its_pages(server, client, monkeypatch):
    made, cluster = [], server._service.cluster
    real = cluster._all_rows
    monkeypatch.setattr(cluster, "_all_rows", lambda: made.append(0) or real())
    leases = [client.lease(16, 60) for _ in range(30)]
    with contextlib.ExitStack() as open_ones:
        raws = [open_ones.enter_context(Raw(server.address)) for _ in range(3)]
        pages = [[raw.ask(Op.LIST, offset=skip, count=10) for raw in raws] for skip in (0, 10, 20)]
    assert len(made) == 3, "once for each client, though they take turns"
    for i in range(3):
        found = [row.id for page in pages for row in wire.rows(page[i][2])]
        assert found == [lease.id.bytes for lease in leases]
        assert all(page[i][3] == 30 for page in pages)
    assert not cluster._listed
    with Raw(server.address) as raw:  # it leaves before it has seen all
        raw.ask(Op.LIST, count=10)
        assert len(cluster._listed) == 1
    wait_until(lambda: not cluster._listed, what="its rows are dropped")
    for lease in leases:
        lease.release()
