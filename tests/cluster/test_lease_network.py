"""Leases over the network and mapped ones are the same leases: a server's become the cluster's, and back."""

import asyncio
import contextlib
import signal
import threading
import time

import pytest

import dsm
from dsm import limits
from dsm.errors import Status
from dsm.limits import MAX_FOREIGN_BYTES
from dsm.server import cluster as server_cluster
from dsm.server.share import Share
from dsm.testing import Cluster
from dsm.wire.leases import Op
from dsm.worker.regions import is_lease
from leasing import Raw, idle
from support import wait_until

DATA = bytes(range(256)) * 8192  # 2 MiB

servers = []
kept = []


# ---- functions that workers run --------------------------------------------------------------------


def serve(node):
    servers.append(dsm.Server(size="64M", node=node).start())
    return servers[-1].address


def read(node, token, offset=0, n=None):
    lease = node.open_lease(token)
    return lease.get(offset, n), lease.writable, lease.expires_in


def write(node, token, data, offset=0):
    lease = node.open_lease(token)
    lease.array()[offset : offset + len(data)] = list(data)


def lease(node, nbytes, duration, data):
    taken = node.lease(nbytes, duration)
    taken.set(data)
    kept.append(taken)
    return taken.token, taken.read_token


def mine(node, n):
    return kept[-1].get(0, n), kept[-1].expires_in


def release_last(node):
    kept.pop().release()


def open_many(node, tokens):
    """Open leases one after the other; return what went wrong."""
    wrong = []
    for token in tokens:
        try:
            node.open_lease(token)
        except dsm.DSMError as error:
            wrong.append(repr(error))
    return wrong


def lease_many(node, count):
    kept.extend(node.lease(4096, "60s") for _ in range(count))
    for number, each in enumerate(kept[-count:]):
        each.set(bytes([number]))
    return [each.token for each in kept[-count:]]


def release_many(node, count):
    for each in kept[-count:]:
        each.release()
    del kept[-count:]


def keep_open(node, token):
    kept.append(node.open_lease(token))


def keep_at_most(node, count):
    before, server_cluster.MAX_FOREIGN_LEASES = server_cluster.MAX_FOREIGN_LEASES, count
    return before


def leases_mapped(node):
    """Return how many leases are mapped in this process, and how many are remembered."""
    regions = node._regions
    mapped = sum(is_lease(number) for number in list(regions._open))
    return mapped, len(node._leases._held), sum(region._handles for region in list(regions._open.values()))


class _Noted(Share):
    """Notes for what size room was asked, request by request."""

    def __init__(self, nbytes):
        super().__init__(nbytes)
        self.asked = []

    def take(self, who, nbytes):
        self.asked.append(nbytes)
        return super().take(who, nbytes)


def share(node, nbytes):
    """Let requests for leases of the cluster have so much memory together."""
    servers[0]._service.foreign = _Noted(nbytes)


def asked(node):
    return servers[0]._service.foreign.asked


def under_way(node):
    """Return the memory that requests have, and how many wait for some."""
    service = servers[0]._service
    held = 0
    for each in list(service._connections.values()):
        held += sum(len(view) for view, _ in list(each._queue))
        upload = each._upload
        held += len(upload.gathered) if upload is not None and upload.foreign is not None else 0
    return held, len(service.foreign.taken), len(service.foreign.waiting)


def read_in_this_process(node, token):
    """The process of the server maps what the server has."""
    return node.open_lease(token).get(0, 3)


# ---- tests -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Rank 0 serves; rank 1 and 2 are on other nodes."""
    with Cluster(nodes=3, workers=1) as cluster:
        cluster.address = cluster.workers[0].call(serve)
        yield cluster


@pytest.fixture
def client(cluster):
    with dsm.connect(cluster.address, timeout=30) as client:
        yield client


@pytest.fixture
def other(cluster):
    return cluster.workers[1]


def test_a_lease_of_the_network_is_mapped_with_its_bytes_keys_and_time(client, other):
    lease = client.lease(len(DATA) + 5, "60s")
    lease.set(DATA, 3)
    found, writable, left = other.call(read, lease.token)
    assert found == bytes(3) + DATA + bytes(2)
    assert writable and 40 < left <= 60
    found, writable, _ = other.call(read, lease.read_token, 3, 10)
    assert (found, writable) == (DATA[:10], False)

    other.call(write, lease.token, b"from the other node", 1000)
    assert lease.get(1000, 19) == b"from the other node"
    lease.set(b"and back", 1000)
    assert other.call(read, lease.token, 1000, 8)[0] == b"and back"
    assert idle(client)  # it is the cluster's now
    lease.renew("300s")
    assert other.call(read, lease.token, 0, 1)[2] > 200
    lease.release()
    with pytest.raises(dsm.LeaseExpiredError):
        lease.get(0, 1)
    with pytest.raises(dsm.LeaseExpiredError):
        other.call(read, lease.token)


def test_a_mapped_lease_is_used_over_the_network(client, other):
    token, read_token = other.call(lease, len(DATA), "60s", DATA)
    remote, reader = client.open(token), client.open(read_token)
    assert (remote.nbytes, remote.writable, reader.writable) == (len(DATA), True, False)
    assert 40 < remote.expires_in <= 60
    assert remote.get() == reader.get() == DATA
    remote.set(b"network", 0)
    remote.set(DATA[:300_000], 7)
    assert other.call(mine, 10)[0] == b"network" + DATA[:3]
    with pytest.raises(dsm.NotPermittedError):
        reader.set(b"x")
    remote.renew("300s")
    remote.release()
    with pytest.raises(dsm.LeaseExpiredError):
        reader.get(0, 1)


def test_what_is_wrong_with_a_lease_of_the_cluster_is_told_by_class(cluster, client, other):
    token, read_token = other.call(lease, 5000, "60s", b"abc")
    shown, reader = (bytes.fromhex(each.replace(".", "")) for each in (token, read_token))
    with Raw(cluster.address, timeout=30) as raw:
        assert raw.ask(Op.GET, token=shown, offset=4999, count=2)[0] == Status.USAGE
        for data in (b"xy", b"x" * 600_000):
            raw.send(Op.SET, token=shown, offset=4999, payload=data, count=len(data))
            assert raw.reply()[0] == Status.USAGE
            raw.send(Op.SET, token=reader, payload=data[:1], count=1)
            assert raw.reply()[0] == Status.NOT_PERMITTED
        assert raw.ask(Op.RELEASE, token=reader)[0] == Status.NOT_PERMITTED
        assert raw.ask(Op.GET, token=shown[:16] + bytes(16), count=1)[0] == Status.UNKNOWN_LEASE
        # Requests behind one that waits for the cluster keep their order.
        for number in range(20):
            raw.send(Op.GET, number, token=shown, count=3)
            raw.send(Op.PING, number)
        assert [raw.reply()[:2] for _ in range(40)] == [(0, i // 2) for i in range(40)]
    client.open(token).release()


def test_nothing_is_lost_while_a_lease_becomes_the_clusters(client, other):
    taken = client.lease("4M", "60s")
    stop = threading.Event()
    counts, failed = [0] * 4, []

    def work(i):
        try:
            with client.clone() as own:
                handle = own.open(taken.token)
                while not stop.is_set():
                    counts[i] += 1
                    handle.set(counts[i].to_bytes(8, "little") * 1000, i << 20)
                    assert handle.get(i << 20, 8) == counts[i].to_bytes(8, "little")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(count > 20 for count in counts), 20)
    other.call(read, taken.token, 0, 1)
    after = list(counts)
    wait_until(lambda: all(now > then + 5 for now, then in zip(counts, after, strict=True)), 30)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failed
    for i in range(4):
        assert other.call(read, taken.token, i << 20, 8000)[0] == counts[i].to_bytes(8, "little") * 1000
    taken.release()


def test_workers_that_open_one_lease_with_different_keys_both_get_it(cluster, client, other):
    taken = [client.lease("64K", "60s") for _ in range(20)]
    with Raw(cluster.address) as slow:  # it makes the first move last
        token = bytes.fromhex(taken[0].token.replace(".", ""))
        slow.send(Op.SET, token=token, payload=65536, count=65536)
        slow.sock.sendall(b"x" * 1000)
        wait_until(lambda: taken[0].get(999, 1) == b"x", 5)
        writer = cluster.workers[1].start(open_many, [each.token for each in taken])
        reader = cluster.workers[2].start(open_many, [each.read_token for each in taken])
        assert writer.result(60) == reader.result(60) == []
    assert all(each.mapped for each in client.leases())
    for each in taken:
        each.release()


def test_a_set_that_does_not_go_on_does_not_keep_the_cluster_waiting(cluster, client, other):
    taken = client.lease("1M", "60s")
    with Raw(cluster.address) as slow:
        token = bytes.fromhex(taken.token.replace(".", ""))
        slow.send(Op.SET, token=token, payload=1 << 20, count=1 << 20)
        slow.sock.sendall(b"x" * 1000)
        wait_until(lambda: taken.get(999, 1) == b"x", 5)
        begin = time.monotonic()
        assert other.call(read, taken.token, 0, 1)[0] == b"x"
        assert time.monotonic() - begin < 20
        assert slow.is_closed()
    taken.release()


MANY = 30 << 20


@pytest.fixture
def narrow(cluster, other):
    """Room for one large request at a time; gives a token for such."""
    token = other.call(lease, MANY, "100s", DATA)[0]
    cluster.workers[0].call(share, MANY + 1000)
    yield token
    wait_until(lambda: cluster.workers[0].call(under_way) == (0, 0, 0), 10)
    cluster.workers[0].call(share, MAX_FOREIGN_BYTES)
    other.call(release_last)


@pytest.mark.parametrize("op", [Op.GET, Op.SET])
def test_who_does_not_go_on_costs_others_no_memory_and_little_time(cluster, client, narrow, op):
    token = bytes.fromhex(narrow.replace(".", ""))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Raw(cluster.address, timeout=30)) for _ in range(3)]
        for raw in idle:
            raw.send(op, token=token, payload=MANY if op == Op.SET else 0, count=MANY)
        wait_until(lambda: cluster.workers[0].call(asked) == [MANY] * 3)
        most = 0
        with client.clone() as large:
            got = []
            thread = threading.Thread(target=lambda: got.append(large.open(narrow).get()))
            thread.start()
            while thread.is_alive():
                assert client.open(narrow).get(0, 5) == DATA[:5]
                most = max(most, cluster.workers[0].call(under_way)[0])
            thread.join()
        assert got == [DATA + bytes(MANY - len(DATA))]
        assert most <= MANY + 1000
        assert cluster.workers[0].call(asked) == [MANY] * 4, "what is small needs no room"
        for raw in idle:
            with pytest.raises((EOFError, ConnectionError)):
                raw.exactly(MANY + 33)


def test_who_goes_on_slowly_is_not_cut_off_while_nobody_waits(cluster, client, narrow):
    token = bytes.fromhex(narrow.replace(".", ""))
    with Raw(cluster.address, timeout=30) as slow:
        slow.send(Op.GET, token=token, count=MANY)
        slow.exactly(32)
        time.sleep(2.5 * limits.LEASE_LINGER_S)
        assert slow.exactly(MANY)[: len(DATA)] == DATA
        assert slow.ask(Op.PING)[0] == 0


def test_requests_that_wait_for_room_are_all_done(cluster, client, narrow):
    begin, done = threading.Barrier(6), []

    def work(number):
        with client.clone() as own:
            handle = own.open(narrow)
            begin.wait(20)
            for _ in range(2):
                handle.set(bytes([number]) * MANY)
                done.append(len(handle.get()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == [MANY] * 12


def test_a_server_keeps_few_leases_of_the_cluster_mapped(cluster, client, other):
    serving = cluster.workers[0]
    usual = serving.call(keep_at_most, 3)
    tokens = other.call(lease_many, 12)
    try:
        before = serving.call(leases_mapped)
        for _ in range(3):
            assert [client.open(token).get(0, 2) for token in tokens] == [bytes([i, 0]) for i in range(12)]
        # The last one that was put out goes when its request is answered.
        wait_until(lambda: serving.call(leases_mapped) == (3, 3, 3), 10, what=f"before: {before}")

        serving.call(keep_open, tokens[0])  # the program of the server uses one itself
        for token in tokens:
            client.open(token).set(b"x", 1)
        wait_until(lambda: serving.call(leases_mapped) == (4, 4, 4), 10)
        assert serving.call(mine, 2)[0] == b"\0x"
    finally:
        serving.call(keep_at_most, usual)
        other.call(release_many, 12)
    wait_until(lambda: serving.call(leases_mapped) == (0, 0, 0), 10)
    with pytest.raises(dsm.LeaseExpiredError):
        serving.call(mine, 2)


def _fill(node, value):
    node.array("pages", 3 << 20, "u1")[:] = value


def _send(node, address, how):
    """Set a lease of the network to an array whose pages are on another node."""
    pages = node.array("pages", 3 << 20, "u1")
    if how == "asyncio":

        async def send():
            async with await dsm.connect_async(address) as client, await client.lease("3M", "60s") as lease:
                await lease.set(pages)
                return await lease.get()

        return set(asyncio.run(send()))
    with dsm.connect(address) as client, client.lease("3M", "60s") as lease:
        if how == "pipeline":
            with client.pipeline() as pipeline:
                pipeline.set(lease, pages)
        else:
            lease.set(pages[:100_000])
            lease.set(pages[100_000:], 100_000)
        return set(lease.get())


@pytest.mark.parametrize("how", ["threads", "pipeline", "asyncio"])
def test_pages_that_are_on_another_node_are_sent(cluster, other, how):
    cluster.workers[2].call(_fill, 7)
    assert other.call(_send, cluster.address, how) == {7}


def test_a_lease_that_was_given_away_still_ends_in_time(client, other):
    taken = client.lease(1000, "60s")
    assert other.call(read, taken.token)[1]
    taken.renew("500ms")
    wait_until(lambda: _expired(taken), 10)


def _expired(taken):
    try:
        taken.get(0, 1)
    except dsm.LeaseExpiredError:
        return True
    return False


def test_a_lease_that_has_ended_here_is_not_searched_elsewhere(client, other):
    taken = client.lease(1000, "60s")
    taken.release()
    with pytest.raises(dsm.LeaseExpiredError):
        other.call(read, taken.token)


def test_two_servers_of_a_cluster_serve_each_others_leases(cluster, client, other):
    address = other.call(serve)
    with dsm.connect(address, timeout=30) as second:
        taken = client.lease(100_000, "60s")
        taken.set(DATA[:100_000])
        assert second.open(taken.token).get() == DATA[:100_000]
        second.open(taken.token).set(b"x")
        assert taken.get(0, 2) == b"x" + DATA[1:2]
        taken.release()


def test_leases_end_with_the_process_of_their_server():
    with Cluster(nodes=2, workers=1) as cluster:
        address = cluster.workers[0].call(serve)
        with dsm.connect(address) as client:
            token = client.lease("1M", "60s").token
            cluster.workers[0].kill(signal.SIGKILL)
            with pytest.raises(dsm.UnknownLeaseError):
                cluster.workers[1].call(read, token)
            with pytest.raises(dsm.NodeLostError):
                client.ping()


def test_the_list_has_the_leases_of_the_server_and_those_of_the_cluster(client, other):
    own = client.lease(1000, "50s")
    given = client.lease(2000, "40s")
    other.call(read, given.token)
    other.call(lease, 3000, "30s", b"abc")
    listed = client.leases()
    assert [(each.nbytes, each.mapped) for each in listed] == [(3000, True), (2000, True), (1000, False)]
    assert all(0 <= each.age < 60 for each in listed)
    assert {own.id, given.id} < {each.id for each in listed}
    own.release()
    given.release()
    assert other.call(mine, 3)[0] == b"abc"
    assert [each.nbytes for each in client.leases()] == [3000]
    other.call(release_last)
    wait_until(lambda: client.leases() == [], what="the list is empty")
