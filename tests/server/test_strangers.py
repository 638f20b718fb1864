"""Clients that are wrong, slow, greedy or gone: nobody else notices, and what they had is free again."""

import contextlib
import errno
import gc
import os
import resource
import select
import socket
import struct
import threading
import time

import pytest

import dsm
from dsm import limits
from dsm.errors import Status
from dsm.server import acceptor
from dsm.server.connection import Connection
from dsm.server.share import Share
from dsm.wire import leases as wire
from dsm.wire.address import show_address
from dsm.wire.leases import Op
from leasing import Raw, idle
from support import wait_until

SECRET = b"a secret of sixteen bytes or more"


@pytest.fixture
def raw(server):
    with Raw(server.address) as raw:
        yield raw


@pytest.fixture
def lease(client):
    with client.lease("1M", 60) as lease:
        yield lease


def _connections(client):
    return client.figures()["connections"]


def _token(lease):
    return bytes.fromhex(str(lease.token).replace(".", ""))


# -- nonsense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"DSMH" + b"\0" * 60, b"DSML\xff"])
def test_a_stranger_is_cut_off_at_once(server, client, data):
    with Raw(server.address, greet=False) as raw:
        raw.sock.sendall(data)
        assert raw.exactly(40)[5] == 5 if data[:4] == b"DSML" else True
        assert raw.is_closed()
    assert client.ping() < 5


@pytest.mark.parametrize(
    "fields",
    [
        {"op": 0}, {"op": 10}, {"op": 255}, {"op": Op.GET, "payload": 1}, {"op": Op.PING, "payload": 1 << 63},
        {"op": Op.SET, "payload": (1 << 40) + 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_understood_is_answered_and_ends_the_connection(raw, client, fields):
    raw.send(number=7, **fields)
    raw.sock.sendall(b"x" * 1000)
    status, number, message, _, _ = raw.reply()
    assert (status, number) == (Status.WIRE, 7) and b"closed" in message
    assert raw.is_closed()
    assert client.ping() < 5


@pytest.mark.parametrize("position", [1, 2, 3])
def test_flags_that_are_not_known_are_not_ignored(raw, position):
    header = bytearray(wire.request(Op.PING, 1))
    header[position] = 1
    raw.sock.sendall(bytes(header))
    assert raw.reply()[0] == Status.WIRE


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"op": Op.LEASE, "count": 0, "offset": 1}, Status.USAGE),
        ({"op": Op.LEASE, "count": 1, "offset": 0}, Status.USAGE),
        ({"op": Op.LEASE, "count": 1, "offset": 2**64 - 1}, Status.USAGE),
        ({"op": Op.LEASE, "count": 2**64 - 1, "offset": 1}, Status.TOO_LARGE),
        ({"op": Op.GET, "count": 1}, Status.UNKNOWN_LEASE),
        ({"op": Op.INFO}, Status.UNKNOWN_LEASE),
        ({"op": Op.RENEW, "offset": 1}, Status.UNKNOWN_LEASE),
        ({"op": Op.RENEW, "offset": 0}, Status.USAGE),
        ({"op": Op.RELEASE}, Status.UNKNOWN_LEASE),
        ({"op": Op.LIST, "count": 0}, Status.USAGE),
        ({"op": Op.LIST, "count": 1 << 40}, Status.USAGE),
        ({"op": Op.SET, "payload": b"x" * 100_000, "count": 100_000}, Status.UNKNOWN_LEASE),
        ({"op": Op.SET, "payload": b"x" * 100_000, "count": 99_999}, Status.USAGE),
    ],
    ids=str,
)
def test_what_is_wrong_in_itself_is_answered_and_the_connection_goes_on(raw, fields, status):
    raw.send(number=3, **fields)
    assert raw.reply()[:2] == (status, 3)
    assert raw.ask(Op.PING)[0] == Status.OK


@pytest.mark.parametrize(
    "fields",
    [
        {"op": Op.GET, "offset": 1 << 20, "count": 1},
        {"op": Op.GET, "offset": 2**64 - 1, "count": 2**64 - 1},
        {"op": Op.GET, "offset": (1 << 20) + 1, "count": wire.TO_THE_END},
        {"op": Op.SET, "offset": 1 << 20, "count": 1, "payload": b"x"},
        {"op": Op.SET, "offset": 2**64 - 1, "count": 9, "payload": b"123456789"},
        {"op": Op.SET, "offset": (1 << 20) - 5, "count": 100_000, "payload": b"x" * 100_000},
    ],
    ids=str,
)
def test_bytes_outside_the_lease_are_refused_by_the_server_too(raw, lease, fields):
    raw.send(token=_token(lease), **fields)
    assert raw.reply()[0] == Status.USAGE
    assert lease.get(0, 16) == bytes(16)
    assert raw.ask(Op.PING)[0] == Status.OK


def test_a_set_larger_than_the_server_ends_the_connection(raw, lease, client):
    raw.send(Op.SET, token=_token(lease), payload=65 << 20, count=65 << 20)
    raw.sock.sendall(b"x" * 100_000)
    assert raw.reply()[0] == Status.USAGE
    assert raw.is_closed()
    assert lease.get(0, 16) == bytes(16)


def test_a_set_with_the_read_key_writes_nothing(raw, lease):
    token = bytes.fromhex(lease.read_token.replace(".", ""))
    for data in (b"x", b"x" * 300_000):
        raw.send(Op.SET, token=token, payload=data, count=len(data))
        assert raw.reply()[0] == Status.NOT_PERMITTED
    assert lease.get() == bytes(1 << 20)


def test_all_bytes_can_be_asked_for_without_knowing_how_many(raw, lease):
    lease.set(b"end", (1 << 20) - 3)
    status, _, data, count, _ = raw.ask(Op.GET, token=_token(lease), offset=10, count=wire.TO_THE_END)
    assert (status, len(data), count, data[-3:]) == (0, (1 << 20) - 10, (1 << 20) - 10, b"end")


# -- slow, and gone ----------------------------------------------------------------------------------------


def test_requests_may_arrive_byte_by_byte(raw, lease):
    for byte in wire.request(Op.SET, 5, payload=3, count=3, token=_token(lease)) + b"abc":
        raw.sock.sendall(bytes([byte]))
    assert raw.reply()[:2] == (0, 5)
    assert lease.get(0, 3) == b"abc"


def test_who_vanishes_in_the_middle_of_anything_leaves_nothing(server, client, lease):
    wait_until(lambda: _connections(client) == 1, what="nobody else is connected")
    header = wire.request(Op.SET, 1, payload=1 << 20, count=1 << 20, token=_token(lease))
    for data in (b"", header[:40], header, header + b"x" * 100_000):
        with Raw(server.address) as raw:
            raw.sock.sendall(data)
            # A reset, not an orderly end.
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: _connections(client) == 1, 5)
    assert lease.get(1 << 19, 4) == bytes(4)


def test_a_client_that_has_said_all_gets_its_answers(server, lease):
    with Raw(server.address) as raw:
        for number in range(20):
            raw.send(Op.GET, number, token=_token(lease), count=1 << 20)
        raw.sock.shutdown(socket.SHUT_WR)
        assert [raw.reply()[1] for _ in range(20)] == list(range(20))
        assert raw.is_closed()


def test_a_client_that_has_said_all_gets_small_answers_too(server, lease):
    with Raw(server.address) as raw:
        requests = [wire.request(Op.GET, number, token=_token(lease), count=4096) for number in range(1000)]
        raw.sock.sendall(b"".join(requests))
        raw.sock.shutdown(socket.SHUT_WR)
        assert [raw.reply()[1] for _ in range(1000)] == list(range(1000))
        assert raw.is_closed()


@pytest.mark.parametrize("count", [60_000, 1 << 20])
def test_who_does_not_read_is_not_read_from_and_costs_no_memory(server, client, lease, count):
    service = server._service

    def stands_still():
        """Neither side takes anything; what the server keeps is judged whenever it is looked at."""
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while sent < 1 << 30:
                sent += raw.sock.send(memoryview(batch)[sent % len(batch) :])
        assert sent < 1 << 30
        return service.ask(is_not_read_from) and not select.select([], [raw.sock], [], 0)[1]

    def is_not_read_from():
        connection = service._connections[at]
        kept = sum(len(view) for view, holding in connection._queue if holding is None)
        assert kept <= limits.MAX_LEASE_UNREAD_BYTES + limits.LEASE_COPY_BYTES + 64
        assert len(connection._rest) <= len(service.buffer)
        return connection._queue and not connection._interest & select.EPOLLIN

    sent = 0
    with Raw(server.address) as raw:
        at = list(service._connections)[-1]
        raw.sock.setblocking(False)
        batch = b"".join(wire.request(Op.GET, 1, token=_token(lease), count=count) for _ in range(1000))
        wait_until(stands_still)
        client.ping()
        assert lease.get(0, 10) == bytes(10) and stands_still()


def _moved_during_a_get(server, lease):
    """Return the bytes that others moved meanwhile; how long that takes is the machine's business."""
    service = server._service
    before = service.bytes_in + service.bytes_out
    lease.get(0, 4096)
    return service.bytes_in + service.bytes_out - before


def test_two_that_copy_much_do_not_delay_others_for_long(server, client):
    stop = threading.Event()

    def work():
        with client.clone() as mine, mine.lease("16M", 60) as big:
            data = bytes(16 << 20)
            while not stop.is_set():
                big.set(data)
                big.get()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    with client.lease(4096, 60) as small:
        moved = [_moved_during_a_get(server, small) for _ in range(100)]
    stop.set()
    for thread in threads:
        thread.join(30)
    assert sorted(moved)[50] <= 4 * limits.LEASE_TURN_BYTES, "a get waits for turns, not for whole transfers"


def test_a_client_that_asks_without_end_does_not_starve_others(server, client, lease):
    stop = threading.Event()
    with Raw(server.address) as greedy:
        batch = b"".join(wire.request(Op.GET, 1, token=_token(lease), count=4096) for _ in range(500))

        def write():
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    greedy.sock.sendall(batch)

        def read():
            with contextlib.suppress(OSError):
                while greedy.sock.recv(1 << 20):
                    pass

        threads = [threading.Thread(target=each) for each in (write, read)]
        for thread in threads:
            thread.start()
        moved = [_moved_during_a_get(server, lease) for _ in range(20)]
        stop.set()
        greedy.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
    assert sorted(moved)[10] <= 4 * limits.LEASE_TURN_BYTES


def test_a_turn_is_bounded_however_much_is_asked_for_at_once(server, client, lease, monkeypatch):
    turns = []

    def counted(method):
        def act(self, *arguments):
            before = self._service.bytes_out
            method(self, *arguments)
            turns.append(self._service.bytes_out - before)

        return act

    monkeypatch.setattr(Connection, "turn", counted(Connection.turn))
    with Raw(server.address) as raw:
        for count in (256 << 10, 60_000, 100):
            requests = [wire.request(Op.GET, i, token=_token(lease), count=count) for i in range(2000)]
            sender = threading.Thread(target=raw.sock.sendall, args=(b"".join(requests),))
            sender.start()
            for i in range(2000):
                assert raw.reply()[1] == i
            sender.join(10)
    assert max(turns) <= limits.LEASE_TURN_BYTES + limits.MAX_LEASE_UNREAD_BYTES + limits.LEASE_COPY_BYTES


def test_an_error_of_the_server_costs_one_connection(server, client, lease, node, monkeypatch, caplog):
    theirs = node.lease("4K", "60s")
    monkeypatch.setattr(Connection, "_drain", lambda self: 1 / 0)
    with client.clone() as other, pytest.raises(dsm.NodeLostError):
        other.open(theirs.token)
    assert "ZeroDivisionError" in caplog.text
    assert lease.get(0, 1) == b"\0"
    theirs.release()


def test_bytes_of_the_cluster_that_nobody_takes_make_room_for_others(server, client, node, monkeypatch):
    size = 24 << 20
    monkeypatch.setattr(server._service, "foreign", Share(size))
    theirs = node.lease(size, "60s")
    token = bytes.fromhex(theirs.token.replace(".", ""))
    data = os.urandom(1 << 20) * 24
    with Raw(server.address) as silent, Raw(server.address, timeout=30) as half, client.clone() as other:
        other.open(theirs.token).set(data)
        silent.send(Op.GET, token=token, count=size)
        silent.exactly(32)
        assert other.open(theirs.token).get() == data
        with pytest.raises((EOFError, ConnectionResetError)):
            silent.exactly(size)
        half.send(Op.SET, token=token, payload=size, count=size)
        half.sock.sendall(b"x" * 1000)
        name = show_address(*half.sock.getsockname())
        wait_until(lambda: [each for each in list(server._service.foreign.taken) if each.name == name])
        assert other.open(theirs.token).get() == data
        assert half.is_closed()
    wait_until(lambda: not server._service.foreign.taken, 5)
    theirs.release()


def test_many_leases_that_end_together_do_not_stop_the_server(server, client, monkeypatch):
    service, rounds = server._service, []
    real = service._on_time

    def timed():
        before = time.thread_time()
        real()
        rounds.append(time.thread_time() - before)

    def end_together():
        now = service.now_ms()
        for lease in leases:
            service.book.renew(_token(lease), now, 100)
        monkeypatch.setattr(service, "_on_time", timed)

    with contextlib.ExitStack() as idle_ones:
        gc.disable()  # it would be counted for the thread that it happens in
        idle_ones.callback(gc.enable)
        for _ in range(300):
            idle_ones.enter_context(Raw(server.address))
        leases = [client.lease(32, 60) for _ in range(2000)]
        service.ask(end_together)
        wait_until(lambda: idle(client), 10)
    assert max(rounds) < 0.05, "processor time of the loop, whatever else runs"


# -- leases that end in the middle of a transfer -----------------------------------------------------------


def test_a_set_that_is_on_its_way_when_the_lease_ends_is_dropped(server, client):
    lease = client.lease("1M", 60)
    with Raw(server.address) as raw:
        raw.send(Op.SET, 9, token=_token(lease), payload=1 << 20, count=1 << 20)
        raw.sock.sendall(b"x" * 500_000)
        wait_until(lambda: lease.get(499_999, 1) == b"x", 5)
        lease.release()
        wait_until(lambda: idle(client), 5)
        with client.lease("1M", 60) as next_one:
            raw.sock.sendall(b"y" * ((1 << 20) - 500_000))
            assert raw.reply()[:2] == (Status.LEASE_EXPIRED, 9)
            assert next_one.get() == bytes(1 << 20)
        assert raw.ask(Op.PING)[0] == 0


def test_memory_that_is_being_sent_is_not_leased_again_until_its_reader_is_done_or_cut(server, client):
    lease = client.lease("32M", 60)
    lease.set(b"x" * (32 << 20))
    with Raw(server.address) as slow, Raw(server.address) as gone:
        for raw in (slow, gone):
            raw.send(Op.GET, token=_token(lease), count=32 << 20)
            raw.exactly(32)
        lease.release()
        figures = client.figures()
        assert (figures["leases"], figures["used"]) == (0, 32 << 20)
        data = slow.exactly(32 << 20)  # it goes on
        assert data == b"x" * (32 << 20)
        with pytest.raises((EOFError, ConnectionResetError)):  # it did not
            wait_until(lambda: idle(client), 10)
            gone.exactly(32 << 20)
    with client.lease("32M", 60) as lease:
        assert lease.get() == bytes(32 << 20)
    wait_until(lambda: idle(client), 10)


# -- how many, how long ------------------------------------------------------------------------------------


def test_who_does_not_shake_hands_is_closed_after_a_while(node, monkeypatch):
    monkeypatch.setattr(acceptor, "HANDSHAKE_TIMEOUT_S", 0.2)
    with dsm.Server(size="1M", node=node) as server:
        begin = time.monotonic()
        with Raw(server.address, greet=False) as raw:
            raw.sock.sendall(b"DSM")
            assert raw.is_closed()
        assert time.monotonic() - begin >= 0.2


def test_a_new_connection_takes_the_place_of_the_oldest_that_is_half_open(node, monkeypatch):
    monkeypatch.setattr(acceptor, "MAX_HALF_OPEN", 3)
    with dsm.Server(size="1M", node=node) as server:
        half = [Raw(server.address, greet=False) for _ in range(4)]
        assert half[0].is_closed()
        with dsm.connect(server.address, timeout=5) as client:
            assert client.ping() < 5
        assert half[1].is_closed()
        half[3].sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            half[3].sock.recv(1)
        for raw in half:
            raw.sock.close()


def test_more_connections_than_a_server_takes_are_told_so(node, monkeypatch):
    monkeypatch.setattr(acceptor, "MAX_LEASE_CONNECTIONS", 2)
    with dsm.Server(size="1M", node=node) as server, dsm.connect(server.address) as client:
        with client.clone(), pytest.raises(dsm.LimitError, match="as many connections as it takes"):
            client.clone()
        wait_until(lambda: _connections(client) == 1, 5)
        client.clone().close()


def test_a_server_without_descriptors_says_so_and_goes_on(node):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with dsm.Server(size="1M", node=node) as server, dsm.connect(server.address) as client:
        sock = socket.socket()
        taken = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            with pytest.raises(OSError) as full:
                while True:
                    taken.append(os.dup(0))
            assert full.value.errno == errno.EMFILE
            host, port = server.address.split(":")
            sock.settimeout(5)
            sock.connect((host, int(port)))
            assert sock.recv(40)[5:8] == b"\5\3\0"  # REFUSE, too many
            assert client.ping() < 5
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            sock.close()
        client.clone().close()


def test_a_server_whose_reserve_cannot_be_had_again_goes_on(node, monkeypatch):
    class Full:
        """A listener on a system that has no descriptors."""

        def __init__(self, listener):
            self.listener = listener

        def __getattr__(self, name):
            return getattr(self.listener, name)

        def accept(self):
            if not full:
                return self.listener.accept()
            self.listener.accept()[0].close()
            raise OSError(errno.ENFILE, "Too many open files in system")

    def open_none(path, *more):
        if full and path == "/dev/null":
            raise OSError(errno.ENFILE, "Too many open files in system")
        return real(path, *more)

    full, real = [True], os.open
    with dsm.Server(size="1M", node=node) as server:
        acceptor = server._service._acceptor
        with dsm.connect(server.address) as client:
            for fd, listener in acceptor._listeners.items():
                acceptor._listeners[fd] = Full(listener)
            monkeypatch.setattr(os, "open", open_none)
            host, port = server.address.split(":")
            for _ in range(2):  # the second finds no reserve
                with socket.create_connection((host, int(port)), 5) as sock:
                    assert sock.recv(40) == b""
            assert client.ping() < 5 and not server.ended.is_set() and not acceptor._reserve.held
        full.clear()
        with dsm.connect(server.address) as client:
            assert client.ping() < 5 and acceptor._reserve.held


def test_a_server_without_any_descriptor_looks_at_its_listener_once_a_second(node, monkeypatch):
    class Full:
        """A listener on a system that has no descriptors: who connects stays in its queue."""

        def accept(self):
            looks.append(time.monotonic())
            raise OSError(errno.ENFILE, "Too many open files in system")

    looks, real = [], os.open
    with dsm.Server(size="1M", node=node) as server, dsm.connect(server.address) as client:
        acceptor = server._service._acceptor
        listeners = dict(acceptor._listeners)
        with socket.socket() as sock:
            acceptor._listeners.update(dict.fromkeys(listeners, Full()))
            monkeypatch.setattr(
                os, "open", lambda path, *more: -1 if path == "/dev/null" else real(path, *more)
            )
            host, port = server.address.split(":")
            sock.connect((host, int(port)))
            wait_until(lambda: len(looks) > 4, 10)  # two for each look until the reserve is gone
            assert looks[4] - looks[3] >= 0.9 and client.ping() < 5
            monkeypatch.undo()
            acceptor._listeners.update(listeners)
            sock.settimeout(10)
            sock.sendall(bytes(8))
            assert sock.recv(40) == b""  # it was taken in, and is no client
        client.clone().close()


def test_a_server_that_fails_and_cannot_close_has_ended_all_the_same(node, monkeypatch):
    server = dsm.Server(size="1M", node=node).start()
    service = server._service
    close = service.close

    def fail():
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(service, "close", fail)
    monkeypatch.setattr(service, "_on_time", fail)
    try:
        assert server.ended.wait(10) and isinstance(server.error, OSError)
    finally:
        server.close()
        close()


def test_a_client_that_cannot_be_watched_is_closed_and_nobody_else(server, client, monkeypatch):
    class Full:
        def __getattr__(self, name):
            return getattr(real, name)

        def register(self, fd, events):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = server._service._epoll
    monkeypatch.setattr(server._service, "_epoll", Full())
    with Raw(server.address, greet=False) as raw:
        assert raw.is_closed()
    assert client.ping() < 5
    monkeypatch.setattr(server._service, "_epoll", real)
    client.clone().close()


# -- secrets -----------------------------------------------------------------------------------------------


def test_both_sides_need_the_secret(node, server, monkeypatch):
    with dsm.Server("127.0.0.1:0", "1M", SECRET, node) as guarded:
        with dsm.connect(guarded.address, secret=SECRET) as client, client.lease(10, 60) as lease:
            assert lease.get() == bytes(10)
        with pytest.raises(dsm.AuthenticationError, match="asks for its secret"):
            dsm.connect(guarded.address)
        with pytest.raises(dsm.AuthenticationError, match="its secret is another one"):
            dsm.connect(guarded.address, secret=SECRET + b"!")
        monkeypatch.setenv("DSM_SECRET", SECRET.decode())
        dsm.connect(guarded.address).close()
    with pytest.raises(dsm.AuthenticationError, match="asks for no secret"):
        dsm.connect(server.address)
    dsm.connect(server.address, secret=False).close()


def test_nothing_is_answered_before_the_proof(node):
    with dsm.Server("127.0.0.1:0", "1M", SECRET, node) as guarded, Raw(guarded.address, greet=False) as raw:
        raw.sock.sendall(struct.pack("<4sBBH32s", b"DSML", 1, 1, 0, bytes(32)))
        assert raw.exactly(40)[5] == 2
        raw.send(Op.FIGURES)
        assert raw.is_closed()
