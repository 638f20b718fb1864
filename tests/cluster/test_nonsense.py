"""Nonsense at a node's door: each is closed with a logged reason, and the cluster does not notice."""

from __future__ import annotations

import contextlib
import os
import resource
import socket

import numpy as np
import pytest

import dsm
import strangers
import support
from dsm.coherence.messages import Kind
from dsm.coherence.rows import ROW, parse
from dsm.limits import JOIN_TIMEOUT_S, MAX_HALF_OPEN, MAX_JOINING, MAX_NODES
from dsm.types import RegionOptions, SyncObject
from dsm.wire import control
from dsm.wire import membership as meta
from dsm.wire.calls import Op, SyncKind
from dsm.wire.handshake import NO_NODE, Client
from dsm.wire.header import VERSION, Family
from dsm.wire.membership import MetaKind
from strangers import Known, Stranger, ends


@pytest.fixture
def cluster():
    with Known(2) as cluster:
        cluster.works()
        yield cluster
        cluster.hang_up()
        assert all(manager.process.poll() is None for manager in cluster.managers), cluster.log.read()
        cluster.works()


# -- before the proof ------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", bytes(4096)])
def test_garbage_is_closed_at_once(cluster, garbage):
    sock = cluster.connect()
    sock.sendall(garbage)
    assert ends(sock) == b""
    cluster.log.wait("are not the handshake of a dsm node")


def test_a_wrong_secret(cluster):
    with pytest.raises(dsm.AuthenticationError, match="our secret is not the one of its cluster"):
        cluster.peer(secret="another secret that is long enough")
    cluster.log.wait("could not prove that it knows the secret")


def test_another_version_and_another_cluster(cluster):
    sock = cluster.connect()
    sock.sendall(b"DSMH" + bytes([VERSION + 1, 1]))
    assert ends(sock)[4:6] == bytes([VERSION, 5])
    cluster.log.wait(f"speaks version {VERSION + 1}")
    with pytest.raises(dsm.AuthenticationError, match="another cluster"):
        cluster.peer(cluster=b"x" * 16)
    cluster.log.wait("belongs to cluster 7878")


def handshake(cluster, node=1, claim=NO_NODE):
    """Connect, prove, and return what we sent, and the connection."""
    sock = cluster.connect(node)
    client = Client(cluster.secret.encode(), os.urandom(32), node=claim)
    hello = client.start()
    sock.sendall(hello)
    proof = client.feed(read(sock, len(hello)))
    sock.sendall(proof)
    client.feed(read(sock, len(proof)))
    assert client.done
    return hello, proof, sock


def read(sock, count):
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data))
    return data


def test_a_recorded_handshake_opens_nothing(cluster):
    hello, proof, sock = handshake(cluster)
    sock.close()
    replayed = cluster.connect(1)
    replayed.sendall(hello)
    challenge = read(replayed, len(hello))
    replayed.sendall(proof)
    assert len(ends(replayed)) == 7, "a refusal"
    cluster.log.wait("could not prove")
    reflected = cluster.connect(1)
    reflected.sendall(challenge)
    assert ends(reflected) == b""
    cluster.log.wait("CHALLENGE where the handshake has HELLO")


def test_a_handshake_cut_at_every_byte(cluster):
    for cut in range(98):
        sock = cluster.connect()
        client = Client(cluster.secret.encode(), os.urandom(32))
        hello = client.start()
        sock.sendall(hello[:cut])
        if cut > len(hello):
            sock.sendall(client.feed(read(sock, len(hello)))[: cut - len(hello)])
        sock.close()
    cluster.log.wait("closed before it was authenticated")
    cluster.log.wait("refused connections: ")
    assert cluster.log.read().count("closed before it was authenticated") < 20, "counted, not repeated"


def test_thousands_of_half_open_connections(cluster):
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            stack.enter_context(cluster.connect())
        cluster.log.wait(f"more than {MAX_HALF_OPEN} connections wait to be authenticated")
        support.wait_until(lambda: descriptors(cluster.managers[0].pid) < 2 * MAX_HALF_OPEN)
        cluster.works()
        cluster.peer().close()  # who knows the secret still comes in


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_who_says_nothing_is_closed(cluster):
    sock = cluster.connect()
    assert ends(sock) == b""
    cluster.log.wait("no proof within 5 s")


# -- numbers of nodes ------------------------------------------------------------------------------------


def test_numbers_that_are_alive_or_were_dead_are_refused():
    with Known(3) as cluster:
        with pytest.raises(dsm.AuthenticationError, match="belongs to a node that it knows"):
            cluster.peer(node=1, claim=2)
        cluster.log.wait("says it is node 2, which is connected here already")
        cluster.managers[2].process.kill()
        support.wait_until(lambda: cluster.workers[1].call(live) == [0, 1])
        with pytest.raises(dsm.AuthenticationError, match="declared dead and stays so"):
            cluster.peer(node=1, claim=2)
        cluster.log.wait("says it is node 2, which was declared dead")
        with pytest.raises(dsm.AuthenticationError):
            cluster.peer(node=0, claim=5)
        cluster.log.wait("who joins connects to node 0 without a number")
        assert [worker.call(live) for worker in cluster.workers[:2]] == [[0, 1]] * 2


def live(node):
    return list(node.nodes)


def test_hung_joiners_are_given_up_and_the_next_one_is_served(cluster):
    silent = cluster.peer()
    hung = cluster.peer()
    number = hung.join().node
    other = cluster.peer(node=1, claim=number)
    next_one = cluster.add_node()  # waits for its turn
    assert next_one.node == number + 1
    said = [stranger.is_closed() for stranger in (silent, hung)]
    assert [type(each.body) for each in said] == [control.Failed] * 2
    assert "did not ask to join" in said[0].body.message
    assert f"within {JOIN_TIMEOUT_S:g} s after it was taken in" in said[1].body.message
    assert other.is_closed(), "members drop it too"
    for reason in ("did not ask to join", f"node {number} (it was joining)", "gave it up before"):
        cluster.log.wait(reason)
    with pytest.raises(dsm.AuthenticationError, match="stays so"):
        cluster.peer(node=1, claim=number)
    assert cluster.workers[0].call(live) == [0, 1, number + 1]


def test_authenticated_strangers_are_bounded(cluster):
    kept = [cluster.peer() for _ in range(MAX_JOINING)]
    for _ in range(20):
        refusal = cluster.peer().is_closed()
        assert f"{MAX_JOINING} nodes wait to join already" in refusal.body.message
    cluster.log.wait("nodes wait to join already")
    for stranger in kept:
        stranger.close()


def test_the_65th_node_is_told_why():
    with Known(1) as cluster:
        for number in range(1, MAX_NODES):
            joiner = cluster.peer()
            assert joiner.join().node == number
            joiner.send(Family.METADATA, MetaKind.READY, node=number)
            joiner.close()
        with pytest.raises(dsm.LimitError, match=f"at most {MAX_NODES} may.*start a new cluster"):
            cluster.add_node()
        cluster.works()


# -- after the proof -------------------------------------------------------------------------------------


def member(cluster):
    """Become a member that says what it likes; returns it and its number."""
    stranger = cluster.peer()
    welcome = stranger.join()
    number = welcome.node
    stranger.cluster = bytes.fromhex(welcome.cluster)
    stranger.links = [cluster.peer(node=1, claim=number, cluster=stranger.cluster)]
    stranger.send(Family.METADATA, MetaKind.READY, node=number)
    support.wait_until(lambda: number in cluster.workers[1].call(live))
    return stranger, number


REGION = 1  # "cells", whose directory blocks belong to nodes 0 and 1
COHERENCE = {
    "pages beyond the region": (Kind.GET, dict(page=1 << 40, count=1)),
    "no pages": (Kind.GET, dict(page=0, count=0)),
    "for another node": (Kind.GET, dict(node=1, page=0, count=1)),
    "an invalidation by a stranger": (Kind.INVALIDATE, dict(node=1, page=0, count=1)),
    "a fetch by a stranger": (Kind.FETCH, dict(node=1, page=0, count=1)),
    "a grant for nothing": (Kind.GRANT, dict(page=0, count=1)),
    "a refusal for nothing": (Kind.DECLINE, dict(page=0, count=1)),
    "an answer to nothing": (Kind.INVALIDATED, dict(page=0, count=1)),
    "a confirmation of nothing": (Kind.CONFIRM, dict(page=0, count=1)),
    "a search by a stranger": (Kind.LOCATE, dict(node=1, page=0, count=1)),
    "found, but nothing was sought": (Kind.PRESENT, dict(page=0, count=1)),
    "not found, but nothing was sought": (Kind.ABSENT, dict(page=0, count=1)),
    "taken back by a stranger": (Kind.VOID, dict(page=0, count=1)),
    "lost, says a stranger": (Kind.LOST, dict(page=0, count=1)),
    "unknown flags": (Kind.GET, dict(page=0, count=1, flags=0xE0)),
}


@pytest.mark.parametrize("hearer, loss", [(0, "is lost"), (1, "is out of reach")])
@pytest.mark.parametrize("words", COHERENCE)
def test_senseless_pages_cost_the_sender_its_link(cluster, words, hearer, loss):
    kind, fields = COHERENCE[words]
    stranger, number = member(cluster)
    link = stranger if hearer == 0 else stranger.links[0]
    link.send(Family.COHERENCE, kind, region=REGION, request=9, **({"node": number} | fields))
    assert stranger.is_closed()
    cluster.log.wait(f"node {number} {loss}: a coherence message of kind {int(kind)} is wrong")
    # A node that used nothing takes nothing along.
    support.wait_until(lambda: cluster.workers[1].call(live) == [0, 1])


METADATA = {
    "ready again": (MetaKind.READY, b""),
    "joins again": (MetaKind.JOIN, meta.encode(meta.Join("x:1"))),
    "acknowledges nothing": (MetaKind.ACKNOWLEDGE, b""),
    "loses itself": (MetaKind.LOST, b""),
    "what only the coordinator says": (MetaKind.MEMBERS, meta.encode(meta.Members(9, [0]))),
    "not messagepack": (MetaKind.ASK, b"\xc1"),
    "another type": (MetaKind.ASK, meta.encode(meta.Join("x:1"))),
    "an array of four thousand million": (MetaKind.ASK, b"\xdd\xff\xff\xff\xff"),
    "a string of four gigabytes": (MetaKind.ASK, b"\xdb\xff\xff\xff\xff"),
    "nesting": (MetaKind.ASK, b"\x91" * 100_000),
    "a table of pages beyond the region": (MetaKind.ASK_PAGES, meta.encode(meta.AskPages(1, 8, 1))),
    "a table of pages before the first": (MetaKind.ASK_PAGES, meta.encode(meta.AskPages(1, -1, 2))),
    "a table of no pages": (MetaKind.ASK_PAGES, meta.encode(meta.AskPages(1, 0, 0))),
    "a table of too many pages": (MetaKind.ASK_PAGES, meta.encode(meta.AskPages(1, 0, 1 << 40))),
    "a worker that no node has": (MetaKind.ASK, meta.encode(meta.Ask(1 << 40, meta.ListNamed()))),
}


@pytest.mark.parametrize("words", METADATA)
def test_senseless_metadata_costs_the_sender_its_link(cluster, words):
    kind, payload = METADATA[words]
    stranger, number = member(cluster)
    stranger.send(Family.METADATA, kind, payload, node=number, request=1 << 31)
    assert stranger.is_closed()
    cluster.log.wait(f"node {number} is lost: ")


def test_senseless_calls_cost_the_sender_its_link(cluster):
    for op, fields in ((SyncKind.WORKER_GONE, dict(count=256)), (Op.LOCK_ACQUIRE, dict(count=1 << 31))):
        stranger, number = member(cluster)
        stranger.send(Family.SYNC, op, node=number, **fields)
        assert stranger.is_closed()
        cluster.log.wait(f"node {number} is lost: a call of worker")


def _rows(count=8, **values):
    rows = np.zeros(count, ROW)
    for name, value in values.items():
        rows[name] = value
    return rows.tobytes()


@pytest.mark.parametrize(
    "rows",
    [_rows(7), _rows(9), _rows()[:-1], b"x", _rows(state=200), _rows(home=64), _rows(level=3)],
    ids=["few", "many", "cut", "one byte", "no state", "no node", "no level"],
)
def test_senseless_rows_of_pages_cost_the_sender_its_link(cluster, rows):
    stranger, number = member(cluster)
    asking = cluster.workers[0].start(strangers.rows_by_node, number)
    while not isinstance(body := stranger.message(), meta.AskPages):
        pass
    assert body == meta.AskPages(REGION, 0, 8)
    stranger.tell(MetaKind.PAGES, meta.PagesTold(rows), node=number, request=stranger.reader.fields[10])
    assert stranger.is_closed()
    cluster.log.wait(f"node {number} is lost: {len(rows)} bytes are no rows of 8 pages")
    assert asking.result() == {0: 8, 1: 8}


def test_rows_of_pages_that_nobody_asked_for_cost_the_sender_its_link(cluster):
    stranger, number = member(cluster)
    stranger.tell(MetaKind.PAGES, meta.PagesTold(b"x"), node=number, request=1 << 31)
    assert stranger.is_closed()
    cluster.log.wait(f"node {number} is lost: node {number} answers question {1 << 31}, which was not asked")


def test_who_asks_for_rows_of_pages_is_answered(cluster):
    stranger, number = member(cluster)
    stranger.tell(MetaKind.ASK_PAGES, meta.AskPages(1000, 0, 5), node=number, request=78)
    while not isinstance(body := stranger.message(), meta.PagesTold):
        pass
    assert (body.rows, stranger.reader.fields[10]) == (b"", 78), "there is no region 1000"
    stranger.tell(MetaKind.ASK_PAGES, meta.AskPages(REGION, 1, 7), node=number, request=79)
    while not isinstance(body := stranger.message(), meta.PagesTold):
        pass
    assert parse(body.rows, 7) is not None
    stranger.close()


def test_senseless_operands_are_refused_and_cost_nobody_anything(cluster):
    """A manager passes on what a worker's board says: it answers for nothing but the form."""
    stranger, number = member(cluster)
    kinds = ("lock", "rwlock", "semaphore", "event", "atomic", "barrier")
    asked = [control.OpenSync(kind, "n", 1) for kind in kinds]
    for request, question in enumerate(asked, 1):
        stranger.tell(MetaKind.ASK, meta.Ask(0, question), request=request)
    huge = 2**64 - 1
    for op in (op for op in Op if op >= Op.LOCK_ACQUIRE):
        for thing in range(1, 12):
            stranger.send(Family.SYNC, op, node=number, region=thing, request=7, page=huge, value=huge)
    stranger.tell(MetaKind.ASK, meta.Ask(0, control.OpenSync("nonsense", "b", 1)), request=99)
    while not (isinstance(told := stranger.message(), meta.Told) and isinstance(told.body, control.Failed)):
        pass
    stranger.close()


def test_questions_that_cannot_be_answered_are_refused_and_no_more(cluster):
    stranger, _ = member(cluster)
    questions = [
        control.CreateRegion(RegionOptions(nbytes=1 << 62)),
        control.CreateRegion(RegionOptions(nbytes=-1)),
        control.CreateRegion(RegionOptions(nbytes=8, page_size=0)),
        control.CreateRegion(RegionOptions(nbytes=8, name="x" * 100_000)),
        control.OpenRegion(1 << 63),
        control.DestroyRegion(-5),
        control.RegionReady((1 << 64) - 1),
        control.OpenSync("barrier", "b", 1 << 63),
        control.OpenSync("nonsense", "b", 1),
        control.OpenSync("semaphore", "b", -1),
        control.OpenSync("semaphore", "b", 1 << 63),
        control.OpenSync("semaphore", "b", 0, bounded=True),
        control.OpenSync("condition", "b", 0),
        control.OpenSync("condition", "b", (1 << 32) - 1),
        control.OpenSync("condition", "b", 1 << 63),
        meta.TakeRank((1 << 64) - 1),
    ]
    for number, question in enumerate(questions):
        stranger.tell(MetaKind.ASK, meta.Ask(0, question), request=number + 1)
        while not isinstance(told := stranger.message(), meta.Told):
            pass
        assert isinstance(told.body, control.Failed), question
    stranger.close()


@pytest.mark.parametrize("joined", [False, True])
def test_huge_lengths_in_every_family_and_kind(cluster, joined):
    families = {
        Family.COHERENCE: list(Kind),
        Family.SYNC: [*SyncKind, *Op],
        Family.METADATA: list(MetaKind),
        77: [1],
    }
    if joined:
        families = {family: kinds[:1] for family, kinds in families.items()}
    for family, kinds in families.items():
        for kind in kinds:
            stranger = member(cluster)[0] if joined else cluster.peer()
            stranger.send(family, kind, length=0xFFFFFFFF)
            assert stranger.is_closed()
    cluster.log.wait("announces 4294967295 payload bytes")
    cluster.log.wait("no message of family 77")


def test_a_node_that_has_not_joined_is_heard_in_nothing_but_joining(cluster):
    for family, kind, payload in (
        (Family.COHERENCE, Kind.GET, b""),
        (Family.SYNC, Op.LOCK_ACQUIRE, b""),
        (Family.METADATA, MetaKind.READY, b""),
        (Family.METADATA, MetaKind.ASK, meta.encode(meta.Ask(0, meta.ListNamed()))),
        (Family.METADATA, MetaKind.SYNC_ADD, meta.encode(SyncObject(1, "lock", "x", 0, 0))),
    ):
        stranger = cluster.peer()
        stranger.send(family, kind, payload)
        assert stranger.is_closed()
    cluster.log.wait("closed the connection of 127.0.0.1:")


def test_a_message_cut_short(cluster):
    stranger, number = member(cluster)
    stranger.send(Family.METADATA, MetaKind.ASK, b"\x82", length=1000)
    stranger.sock.shutdown(socket.SHUT_WR)
    assert stranger.is_closed()
    cluster.log.wait(f"node {number} is lost: the peer broke off in a message")


# -- descriptors -----------------------------------------------------------------------------------------


def test_a_manager_at_its_limit_of_descriptors_serves_who_is_there(cluster):
    pid = cluster.managers[0].pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid), before[1]))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(cluster.connect())
            cluster.log.wait("cannot accept a connection: Too many open files")
            for _ in range(5):
                cluster.works()
        for _ in range(3):  # who cannot be served is told, and does not wait
            local = strangers.Local(cluster.managers[0].socket)
            refused = local.ask(control.Attach(os.getpid(), 1))
            local.close()
            assert "Too many open files; it may have" in refused.message and "ulimit -n" in refused.message
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    stranger = cluster.peer()
    assert isinstance(stranger, Stranger), "accepting goes on"
    stranger.close()


# -- the local socket ------------------------------------------------------------------------------------


def test_a_local_process_that_talks_nonsense(cluster):
    for data in (
        b"\xc1",
        b"\x91" * 50_000,
        os.urandom(1000),
        control.encode(control.Call(1, control.Done())),
    ):
        local = strangers.Local(cluster.managers[0].socket)
        local.sock.send(data)
        with contextlib.suppress(ConnectionError):
            assert not local.sock.recv(10) or data[:1] == b"\x82"
        local.close()
    cluster.log.wait("sent a request that is none")
    local = strangers.Local(cluster.managers[0].socket)
    answer = local.ask(control.CreateRegion(RegionOptions(nbytes=8)))
    assert "first request of a worker is Attach" in answer.message
    local.close()


def test_a_local_process_that_floods_the_socket_with_connections(cluster):
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(contextlib.closing(strangers.Local(cluster.managers[0].socket)))
        cluster.log.wait("connections have not attached")
        assert descriptors(cluster.managers[0].pid) < 400
        cluster.works()


def test_a_local_process_that_never_reads_its_answers(cluster):
    local = strangers.Local(cluster.managers[0].socket)
    assert isinstance(local.ask(control.Attach(os.getpid(), 7)), control.Attached)
    local.sock.settimeout(1)
    asked = 0
    with contextlib.suppress(TimeoutError):
        while asked < 100_000:
            local.send(control.GetStatistics())
            asked += 1
    assert asked < 10_000, "the manager stops reading"
    cluster.works()
    local.sock.settimeout(strangers.TIMEOUT_S)
    for _ in range(asked):
        assert isinstance(local.answer(), control.Statistics), "nothing was dropped"
    local.close()
