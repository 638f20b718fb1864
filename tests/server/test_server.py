"""A lease server and its clients: leases, bytes, keys, errors, limits of time and room."""

import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import dsm
from dsm.client.connection import Connection
from dsm.server import book
from dsm.server import server as server_module
from dsm.wire.leases import FIGURES, Op
from leasing import idle, lasts
from support import wait_until


def test_a_lease_is_zeros_that_can_be_written_and_read(client):
    begin = time.monotonic()
    with client.lease("100K", "60s") as lease:
        assert lasts(lease, 60, begin)
        assert lease.get() == bytes(102400)
        lease.set(b"hello", 99_000)
        assert lease.get(98_999, 7) == b"\0hello\0"
        assert lease.nbytes == 102400


@pytest.mark.parametrize("count", [0, 1, 4096, 65536, 65537, 1 << 20, (5 << 20) + 3])
def test_bytes_of_every_size_come_back(client, count):
    data = np.random.default_rng(count).bytes(count)
    with client.lease(count + 7, 60) as lease:
        lease.set(data, 5)
        assert lease.get(5, count) == data
        assert lease.get() == bytes(5) + data + bytes(2)


def test_arrays_are_written_as_their_bytes(client):
    with client.lease(80, 60) as lease:
        lease.set(np.arange(10.0))
        assert np.frombuffer(lease.get()).sum() == 45
        with pytest.raises(dsm.UsageError, match="contiguous"):
            lease.set(np.arange(10.0)[::2])


def test_a_token_opens_the_lease_and_the_read_token_only_for_reading(client):
    with client.lease(100, 60) as lease, client.clone() as other:
        lease.set(b"abc")
        both, reader = other.open(lease.token), other.open(lease.read_token)
        assert both.id == reader.id == lease.id
        assert (both.nbytes, both.writable, reader.writable) == (100, True, False)
        both.set(b"x")
        assert reader.get(0, 3) == b"xbc"
        for act in (lambda: reader.set(b"y"), reader.release, lambda: reader.renew(9)):
            with pytest.raises(dsm.NotPermittedError, match="write key"):
                act()


def test_an_id_with_another_key_is_as_unknown_as_one_that_never_was(client):
    with client.lease(100, 60) as lease:
        identity = lease.token[:32]
        with pytest.raises(dsm.UnknownLeaseError) as wrong:
            client.open(f"{identity}.{'0' * 32}")
        never = os.urandom(16).hex()
        with pytest.raises(dsm.UnknownLeaseError) as unknown:
            client.open(f"{never}.{'0' * 32}")
        assert str(wrong.value).split("and this key")[1] == str(unknown.value).split("and this key")[1]


def test_a_lease_ends_in_time_and_says_so(client):
    lease = client.lease(100, "60s")
    assert lease.get(0, 1) == b"\0"
    lease.renew("100ms")
    wait_until(lambda: idle(client), 5)
    for act in (lambda: lease.get(0, 1), lambda: lease.set(b"x"), lambda: lease.renew(9), lease.release):
        with pytest.raises(dsm.LeaseExpiredError, match="ran out"):
            act()
    assert lease.expires_in == 0


def test_renewing_puts_the_end_off_or_forward(client):
    lease = client.lease(100, "10s")
    begin = time.monotonic()
    lease.renew("60s")
    assert lasts(lease, 60, begin)
    assert lasts(client.open(lease.token), 60, begin)
    lease.renew("1ms")
    wait_until(lambda: idle(client), 5)


def test_a_released_lease_is_gone_at_once(client):
    lease = client.lease(100, 60)
    lease.release()
    with pytest.raises(dsm.LeaseExpiredError, match="was released"):
        lease.get(0, 1)
    with pytest.raises(dsm.LeaseExpiredError):
        lease.release()


def test_a_with_block_forgives_a_lease_that_has_ended(client):
    with client.lease(100, "1ms"):
        wait_until(lambda: idle(client), 5)


@pytest.mark.parametrize("nbytes", [24, 100_000, 3 << 20, 40 << 20])
def test_memory_is_zeroed_before_it_is_leased_again(client, nbytes):
    for _ in range(3):
        with client.lease(nbytes, 60) as lease:
            assert lease.get() == bytes(nbytes)
            lease.set(b"\xff" * nbytes)
    wait_until(lambda: idle(client), 10)


def test_room_that_is_being_zeroed_is_waited_for(client):
    for _ in range(5):
        lease = client.lease("64M", 60)
        lease.set(b"\xff" * (64 << 20))
        lease.release()  # the next lease needs the very same memory
    wait_until(lambda: idle(client), 10)


def test_full_and_too_large_are_different(client):
    with client.lease("40M", 60):
        with pytest.raises(dsm.FullError, match="largest free piece"):
            client.lease("40M", 60)
        with pytest.raises(dsm.TooLargeError, match="at most 67108864"):
            client.lease("65M", 60)


@pytest.mark.parametrize(
    ("offset", "n"),
    [(-1, 1), (0, 101), (101, None), (1 << 63, 1), (0, -1), (0, 1 << 70), ("0", 1), (0, 1.5),
     pytest.param(0, 10**5000, id="huge"), (True, 1)],
)  # fmt: skip
def test_bytes_that_are_not_the_leases_are_refused(client, offset, n):
    with client.lease(100, 60) as lease, pytest.raises(dsm.UsageError, match="do not lie in"):
        lease.get(offset, n)


@pytest.mark.parametrize(
    ("nbytes", "duration", "words"),
    [
        (0, 60, "0 bytes"),
        (-1, 60, "negative"),
        ("64X", 60, "nbytes is '64X'"),
        (100, 0, "duration is 0"),
        (100, -1, "duration is -1"),
        (100, "x", "duration is 'x'"),
        (100, 1e30, "duration"),
        (1.5, 60, "nbytes is 1.5"),
    ],
)
def test_what_cannot_be_leased_is_refused(client, nbytes, duration, words):
    with pytest.raises(dsm.UsageError, match=words):
        client.lease(nbytes, duration)
    for size in (1 << 63, 1 << 64, 1 << 100_000):
        with pytest.raises(dsm.TooLargeError):
            client.lease(size, 60)


def test_a_list_shows_the_soonest_end_first_and_no_keys(client):
    with client.lease(10, 60) as late, client.lease(20, 30) as soon:
        found = client.leases()
        assert [(each.id, each.nbytes) for each in found] == [(soon.id, 20), (late.id, 10)]
        assert all(0 <= each.age < 20 and 20 < each.expires_in <= 60 for each in found)


def test_a_long_list_comes_whole(client):
    leases = [client.lease(16, 60) for _ in range(2100)]
    assert {each.id for each in client.leases()} == {lease.id for lease in leases}
    for lease in leases:
        lease.release()


def test_figures_are_true(client):
    before = client.figures()
    assert tuple(before) == FIGURES
    with client.lease(5000, 60) as lease:
        lease.set(b"x" * 5000)
        lease.get()
        now = client.figures()
        assert (now["leases"], now["leased_bytes"], now["used"] >= 5000) == (1, 5000, True)
        assert now["size"] == now["used"] + now["free"] == 64 << 20
        assert (now["gets"], now["sets"]) == (before["gets"] + 1, before["sets"] + 1)
        assert now["opened"] == before["opened"] + 1
    wait_until(lambda: idle(client), 5)
    after = client.figures()
    assert (after["released"], after["used"]) == (before["released"] + 1, 0)
    assert after["peak_used"] >= 5000


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_memory_that_has_ended_is_not_sent(node, client, size):
    ended = node.lease("1M", "60s")
    array = ended.array()
    ended.release()
    with client.lease("1M", "60s") as lease:
        with pytest.raises(dsm.LeaseExpiredError), client.pipeline() as pipeline:
            pipeline.set(lease, array[:size])
        with pytest.raises(dsm.LeaseExpiredError):
            lease.set(array[:size])
        assert lease.get() == bytes(1 << 20)


def test_a_lease_goes_to_other_processes_as_its_token(client):
    with client.lease(100, 60) as lease:
        with pytest.raises(dsm.UsageError, match="send its token"):
            pickle.dumps(lease)
        assert pickle.loads(pickle.dumps(lease.token)) == lease.token


@pytest.mark.parametrize("what", ["0" * 32, None, 7])
def test_a_pipeline_takes_leases_of_clients_only(client, what):
    with client.pipeline() as pipeline:
        with pytest.raises(dsm.UsageError, match=r"client\.open"):
            pipeline.get(what)
        with pytest.raises(dsm.UsageError, match=r"client\.open"):
            pipeline.set(what, b"")


def test_a_pipeline_brings_answers_in_order_and_its_first_error(client):
    with client.lease("1M", 60) as lease:
        with client.pipeline() as pipeline:
            for i in range(200):
                pipeline.set(lease, bytes([i]) * 4096, 4096 * i)
            results = [pipeline.get(lease, 4096 * i, 4096) for i in range(200)]
        assert [each.result() for each in results] == [bytes([i]) * 4096 for i in range(200)]

        gone = client.lease(10, 60)
        gone.release()
        with pytest.raises(dsm.LeaseExpiredError), client.pipeline() as pipeline:
            first = pipeline.get(gone, 0, 1)
            pipeline.set(lease, b"z")
            with pytest.raises(dsm.UsageError, match="not sent yet"):
                first.result()
            second = pipeline.get(lease, 0, 1)
        assert second.result() == b"z"
        with pytest.raises(dsm.LeaseExpiredError):
            first.result()


def test_a_pipeline_moves_much_both_ways_at_once(client):
    piece = 100_000
    with client.lease(300 * piece, 60) as lease:
        data = [np.random.default_rng(i).bytes(piece) for i in range(300)]
        with client.pipeline() as pipeline:
            results = []
            for i in range(300):
                pipeline.set(lease, data[i], piece * i)
                results.append(pipeline.get(lease, piece * i, piece))
        assert [each.result() for each in results] == data


def test_handles_may_be_used_by_many_threads(client):
    with client.lease(8 * 4096, "1h") as lease:

        def work(i):
            for k in range(50):
                lease.set(bytes([k]) * 4096, 4096 * i)
                assert lease.get(4096 * i, 4096) == bytes([k]) * 4096

        _in_threads(work, 8)


def test_expiry_is_told_once_and_put_off_by_who_renews(client):
    told = []
    with client.clone() as other:
        lease = client.lease(10, 60)
        other.open(lease.token).renew(90)
        lease._lasts(0)  # as far as it knows
        lease.on_expiry(told.append)
        wait_until(lambda: lease.expires_in > 60, what="the server is asked")
        assert not told
        begin = time.monotonic()
        lease.renew("300ms")
        wait_until(lambda: told)
        assert time.monotonic() - begin > 0.2
        assert told == [lease]
    with pytest.raises(dsm.LeaseExpiredError):
        lease.get(0, 1)
    assert lease.expired


def test_expiry_is_told_of_a_lease_that_is_released_or_has_ended(client, caplog):
    told = []
    lease = client.lease(10, 60)
    lease.on_expiry(told.append)
    lease.on_expiry(lambda lease: 1 / 0)
    lease.release()
    wait_until(lambda: told == [lease], 5)
    lease.on_expiry(told.append)
    wait_until(lambda: told == [lease, lease], 5)
    wait_until(lambda: "ZeroDivisionError" in caplog.text, 5)


def test_expiry_is_told_in_time_when_a_lease_is_renewed_for_less(client):
    told = []
    lease = client.lease(10, 60)
    lease.on_expiry(told.append)
    lease.renew("50ms")
    wait_until(lambda: told == [lease], 5)


def test_expiry_is_told_in_time_when_a_lease_is_renewed_for_less_while_the_server_is_asked(
    client, monkeypatch
):
    def ask(connection, op, **fields):
        answer = real(connection, op, **fields)
        if op == Op.INFO:
            lease.renew("50ms")
        return answer

    told, real = [], Connection.ask
    lease = client.lease(10, 60)
    lease._lasts(0)  # as far as it knows
    monkeypatch.setattr(Connection, "ask", ask)
    lease.on_expiry(told.append)
    wait_until(lambda: told == [lease], 5)


def test_nobody_can_wait_for_an_end_with_a_client_that_is_closed(server):
    with dsm.connect(server.address) as client:
        lease = client.lease(10, 60)
        with pytest.raises(dsm.UsageError, match="callback is a NoneType"):
            lease.on_expiry(None)
        lease.on_expiry(lambda lease: None)
        assert _watchers()
    wait_until(lambda: not _watchers())
    with pytest.raises(dsm.ClosedError, match="connect again"):
        lease.on_expiry(lambda lease: None)
    assert not _watchers()
    with dsm.connect(server.address) as client:
        client.open(lease.token).release()


def _watchers():
    return [thread for thread in threading.enumerate() if thread.name == "dsm-expiry"]


def test_close_does_not_wait_for_a_callback(server):
    begun, goes_on = threading.Event(), threading.Event()
    client = dsm.connect(server.address)
    lease = client.lease(10, 60)
    lease.on_expiry(lambda lease: (begun.set(), goes_on.wait(20)))
    lease.release()
    assert begun.wait(10)
    closer = threading.Thread(target=client.close)
    closer.start()
    closer.join(5)
    ended = not closer.is_alive()
    goes_on.set()
    closer.join(20)
    assert ended
    wait_until(lambda: not _watchers(), 5)


def test_who_waits_for_ends_has_a_thread_only_as_long_as_there_are_some(server, client):
    wait_until(lambda: server.figures()["connections"] == 1, what="nobody else is connected")
    for _ in range(2):
        told = []
        lease = client.lease(10, "50ms")
        lease.on_expiry(told.append)
        wait_until(lambda told=told: told, 5)
        wait_until(lambda: not _watchers(), 5)
        wait_until(lambda: server.figures()["connections"] == 1, 5)


def test_a_server_that_is_gone_is_asked_about_ends_once_a_second_not_for_each_lease(node, monkeypatch):
    asked = []

    def silent(connection, op, **fields):
        asked.append(time.monotonic())
        raise dsm.NodeLostError("a test")

    with dsm.Server(size="1M", node=node) as server, dsm.connect(server.address) as client:
        leases = [client.lease(10, 60) for _ in range(50)]
        monkeypatch.setattr(Connection, "ask", silent)
        for lease in leases:
            lease._lasts(0)  # it is over, and nobody is there to say so
            lease.on_expiry(lambda lease: None)
        wait_until(lambda: len(asked) > 1, 10)
        first, second, *_ = asked
        assert second - first >= 1


def test_two_servers_in_a_process_do_not_disturb_each_other(node, client):
    with dsm.Server(size="1M", node=node) as second, dsm.connect(second.address) as other:
        mine, theirs = client.lease(100, 60), other.lease(100, 60)
        theirs.set(b"x")
        assert mine.get(0, 1) == b"\0"
        with pytest.raises(dsm.UnknownLeaseError):
            client.open("0" * 32 + "." + "0" * 32)
        mine.release()
    with pytest.raises(dsm.NodeLostError):
        other.clone()


def test_a_server_can_be_started_again_and_has_no_leases_then(node):
    server = dsm.Server(size="1M", node=node)
    with server, dsm.connect(server.address) as client:
        client.lease("1M", 60)
    assert repr(server).endswith("not started>")
    with server, dsm.connect(server.address) as client:
        assert client.leases() == []
        with pytest.raises(dsm.UsageError, match="runs already"):
            server.start()
    server.close()
    with pytest.raises(dsm.ClosedError):
        server.figures()


def test_a_server_says_its_figures_in_process(server, client):
    with client.lease(10, 60):
        assert server.figures()["leases"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"listen": "0.0.0.0:0"}, "no secret"),
        ({"listen": "[::]:0"}, "no secret"),
        ({"listen": "localhost:x"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:70000"}, "HOST:PORT"),
        ({"size": 0}, "size is 0"),
        ({"size": "1Q"}, "size is '1Q'"),
        ({"node": "host:1"}, "node is str"),
        ({"secret": "short"}, "at least 16 are needed"),
        ({"secret": 32}, "is a int; pass text or bytes"),
    ],
)
def test_a_server_that_cannot_be_is_refused(options, words):
    with pytest.raises(dsm.UsageError, match=words):
        dsm.Server(**options)


def test_a_child_of_fork_does_not_keep_the_servers_sockets(node):
    server = dsm.Server(size="1M", node=node).start()
    client = dsm.connect(server.address)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)  # until the parent has looked
        os._exit(0)
    os.close(reader)
    server.close()
    try:
        with pytest.raises(dsm.NodeLostError, match="no lease server answers"):
            client.ping()
    finally:
        os.close(writer)
        os.waitpid(child, 0)
        client.close()


def test_a_child_that_keeps_the_servers_sockets_keeps_nobody_waiting(node):
    """One that C libraries make: nothing in it learns of the sockets that it has."""
    server = dsm.Server(size="1M", node=node).start()
    service = server._service
    with dsm.connect(server.address) as client:
        sockets = [*service._acceptor._listeners, *service._connections]
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=sockets):
            server.close()
            with pytest.raises(dsm.NodeLostError, match="no lease server answers"):
                client.ping()


def test_a_program_that_ends_without_closing_its_server_says_nothing():
    program = "import dsm; s = dsm.Server(size='1M').start(); c = dsm.connect(s.address); c.lease(100, 60)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_server_has_a_bound_of_leases(node, monkeypatch):
    monkeypatch.setattr(book, "MAX_SERVER_LEASES", 3)
    with dsm.Server(size="1M", node=node) as server, dsm.connect(server.address) as client:
        leases = [client.lease(10, 60) for _ in range(3)]
        with pytest.raises(dsm.FullError, match="takes no more"):
            client.lease(10, 60)
        leases[0].release()
        client.lease(10, 60)


def test_a_server_of_any_size_leases_all_of_it(node):
    for size, leased in ((1, 4096), (5000, 8192), (3 << 20, 3 << 20)):
        with dsm.Server(size=size, node=node) as server, dsm.connect(server.address) as client:
            assert server.size == client.figures()["size"] == leased
            with client.lease(leased, 60) as lease:
                lease.set(b"x", leased - 1)
                assert client.figures()["free"] == 0


def test_more_than_the_machine_has_is_refused(node):
    with pytest.raises(dsm.LimitError, match="whose machine has"):
        dsm.Server(size="1T", node=node).start()


def test_what_has_run_out_is_refused_though_nobody_has_looked_yet(node, monkeypatch):
    monkeypatch.setattr(book.Book, "due", lambda self, now: [])
    with dsm.Server(size="1M", node=node) as server, dsm.connect(server.address) as client:
        lease = client.lease(100, "60s")
        lease.set(b"x")
        lease.get()
        lease.renew("100ms")

        def has_ended():
            try:
                lease.get(0, 1)
            except dsm.LeaseExpiredError:
                return True
            return False

        wait_until(has_ended, 5)
        with pytest.raises(dsm.LeaseExpiredError):
            lease.set(b"x")


def test_a_secret_may_end_with_a_newline_on_either_side(node):
    secret = "sixteen bytes or more"
    with dsm.Server(size="1M", secret=secret + "\n", node=node) as server:
        dsm.connect(server.address, secret=secret).close()
        dsm.connect(server.address, secret=f" {secret}\n".encode()).close()


def test_a_server_that_cannot_start_leaves_nothing_and_can_start_later(node, monkeypatch):
    server = dsm.Server(size="1M", node=node)
    before = set(os.listdir("/proc/self/fd"))
    for name in ("Service", "Cluster"):
        with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
            broken.setattr(server_module, name, lambda *arguments: 1 / 0)
            server.start()
    assert set(os.listdir("/proc/self/fd")) <= before  # those of earlier tests may be closed meanwhile
    with server, dsm.connect(server.address) as client:
        assert client.ping() < 10


def test_an_address_that_is_taken_is_named(server, node):
    with pytest.raises(dsm.LimitError, match=f"cannot listen on {server.address}"):
        dsm.Server(server.address, "1M", node=node).start()


def _in_threads(work, count):
    failed = []

    def run(i):
        try:
            work(i)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed, failed
