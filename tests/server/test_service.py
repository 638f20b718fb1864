"""The loop of a lease server by itself: what fails in it, and how it ends."""

import contextlib
import os
import socket
import sys
import threading

import pytest

import dsm
from dsm.errors import Status
from dsm.limits import LEASE_COPY_BYTES, LEASE_TURN_BYTES
from dsm.server.connection import Connection
from dsm.server.service import Service
from dsm.wire import leases as wire
from dsm.wire.leases import Op
from leasing import Raw
from support import wait_until

SIZE = 1 << 20


class Memory:
    """Bytes that no node has."""

    def __init__(self, nbytes=SIZE):
        self.nbytes, self.address, self.lost = nbytes, 1 << 30, False
        self.view = memoryview(bytearray(nbytes))

    def zero(self, offset, nbytes, give_back):
        self.view[offset : offset + nbytes] = bytes(nbytes)


class Running:
    """A service and its thread."""

    def __init__(self, nbytes=SIZE):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.memory = Memory(nbytes)
        self.service = Service([listener], self.memory, None)
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            self.service.run()
        except BaseException as error:
            self.error = error
        finally:
            self.service.ended.set()
            self.service.close()

    def connection(self):
        """Return the newest connection."""
        return list(self.service._connections.values())[-1]

    def stop(self):
        self.service.stop()
        self.thread.join(10)


@pytest.fixture
def running():
    running = Running()
    yield running
    running.stop()


# -- what fails --------------------------------------------------------------------------------------------


def _later(service, connection):
    service.call(lambda: service.later(connection))


def _resumed(service, connection):
    service.call(connection.resume)


def _found(service, connection):
    service.call(lambda: connection.found(b"?" * 32, dsm.UnknownLeaseError("nobody has it")))


def _answered(service, connection):
    service.call(lambda: connection.answered(Op.LIST, False, []))


def _moved(service, connection):
    def move():
        service.book.lease(service.now_ms(), 10, 10_000, b"i" * 16, b"w" * 16, b"r" * 16)
        holding = service.book.begin_move(b"i" * 16 + b"w" * 16, service.now_ms()).place
        service.wait_for_move(connection)
        service.end_move(holding, False)

    service.ask(move)


def _cleaned(service, connection):
    def clean():
        service.book.lease(service.now_ms(), 10, 10_000, b"j" * 16, b"w" * 16, b"r" * 16)
        service._waiting.append(connection)
        service.lease_ended(service.book.release(b"j" * 16 + b"w" * 16, service.now_ms()))
        service._due = 0.0

    service.ask(clean)


@pytest.mark.parametrize("error", [ValueError, dsm.LeaseExpiredError, dsm.NodeLostError])
@pytest.mark.parametrize("way", [_later, _resumed, _found, _answered, _moved, _cleaned])
def test_a_bug_in_a_turn_that_comes_later_costs_one_connection(running, monkeypatch, way, error):
    with Raw(running.address) as other, Raw(running.address) as raw:
        assert raw.ask(Op.PING)[0] == other.ask(Op.PING)[0] == 0
        connection, real = running.connection(), Connection._again

        def fails(self):
            if self is connection:
                raise error("a bug")
            real(self)

        monkeypatch.setattr(Connection, "_again", fails)
        connection._rest = wire.request(Op.PING, 5)
        way(running.service, connection)
        assert raw.is_closed()
        assert other.ask(Op.PING)[0] == 0 and running.error is None


def test_the_end_of_the_node_is_told_by_its_memory(running, monkeypatch):
    def fails(self):
        raise dsm.ClosedError("closed")

    with Raw(running.address) as raw:
        assert raw.ask(Op.PING)[0] == 0
        running.memory.lost = True
        monkeypatch.setattr(Connection, "_receive", fails)
        with contextlib.suppress(OSError):
            raw.send(Op.PING)
        running.thread.join(10)
        assert isinstance(running.error, (dsm.ClosedError, dsm.NodeLostError))
        assert raw.is_closed()


# -- turns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5000, 60_000, 200_000, 700_000])
def test_a_turn_has_one_budget_whatever_is_asked_for_in_it(running, monkeypatch, count):
    """Of a client that takes quickly, and has asked for much at once."""
    service, turns, rounds = running.service, [], []

    def measured(name):
        real = getattr(Connection, name)

        def turn(self, *arguments):
            before = service.bytes_out
            real(self, *arguments)
            turns.append(service.bytes_out - before)

        return turn

    real_round = service._on_time

    def counted():
        before = len(turns)
        real_round()
        rounds.append(len(turns) - before)

    with Raw(running.address) as raw:
        keys = raw.ask(Op.LEASE, offset=60_000, count=SIZE)[2]
        monkeypatch.setattr(Connection, "turn", measured("turn"))
        monkeypatch.setattr(service, "_on_time", counted)
        asked = min(2000, (64 << 20) // count)
        one = wire.request(Op.GET, 1, count=count, token=keys[:32])
        small = wire.request(Op.GET, 1, count=10, token=keys[:32])
        left = asked * (count + 32 + 42)
        sender = threading.Thread(target=raw.sock.sendall, args=((one + small) * asked,))
        sender.start()
        buffer = bytearray(8 << 20)
        while left:
            got = raw.sock.recv_into(buffer)
            assert got
            left -= got
        sender.join(10)
    assert max(turns) <= LEASE_TURN_BYTES + LEASE_COPY_BYTES + 100
    assert max(rounds, default=0) <= 1, "of one client"


def test_requests_that_move_nothing_have_a_budget_too(running, monkeypatch):
    answered, handled = [], []
    real, real_turn = Connection._answer, Connection._handle

    def counted(*arguments):
        answered.append(0)
        return real(*arguments)

    def turn(self, *arguments):
        before = len(answered)
        real_turn(self, *arguments)
        handled.append(len(answered) - before)

    monkeypatch.setattr(Connection, "_answer", counted)
    with Raw(running.address) as raw:
        monkeypatch.setattr(Connection, "_handle", turn)
        raw.sock.sendall(b"".join(wire.request(Op.PING, number) for number in range(5000)))
        assert [raw.reply()[1] for _ in range(5000)] == list(range(5000))
        running.service.ask(lambda: None)  # the turn in which the last was sent is over
    assert sum(handled) == 5000 and max(handled) <= 256


def test_requests_are_counted_though_nonsense_comes_behind_them(running):
    with Raw(running.address) as raw:
        keys = raw.ask(Op.LEASE, offset=60_000, count=100)[2]
        store = wire.request(Op.SET, 1, payload=1, count=1, token=keys[:32]) + b"x"
        load = wire.request(Op.GET, 1, count=1, token=keys[:32])
        raw.sock.sendall(store + load + load + wire.request(10, 1))
        raw.exactly(32 + 33 + 33)
        assert raw.reply()[0] == Status.WIRE
    figures = running.service.ask(running.service.figures)
    assert (figures["gets"], figures["sets"], figures["refused"]) == (2, 1, 1)


# -- how it ends -------------------------------------------------------------------------------------------


def test_who_stops_a_loop_that_has_ended_wakes_nobody_else(node):
    server = dsm.Server(size="1M", node=node).start()
    service = server._service
    number = service._wake
    service.stop()
    assert server.ended.wait(10)
    opened = []
    try:
        while number not in opened:  # somebody else gets that number
            opened.append(os.eventfd(0, os.EFD_NONBLOCK))
            assert len(opened) < 1000
        server.close()
        service.call(lambda: None)
        for each in opened:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(each)
    finally:
        for each in opened:
            os.close(each)


def test_a_child_of_fork_takes_a_server_whose_loop_has_ended_as_any_other(node, monkeypatch):
    failed = []
    with dsm.Server(size="1M", node=node) as server:
        server._service.stop()
        assert server.ended.wait(10)
        monkeypatch.setattr(sys, "unraisablehook", failed.append)
        child = os.fork()
        if not child:
            os._exit(bool(failed) or server._service is not None)
        assert os.waitpid(child, 0)[1] == 0


def test_who_asks_a_loop_that_has_ended_is_told(running):
    running.stop()
    wait_until(running.service.ended.is_set)
    with pytest.raises(dsm.ClosedError):
        running.service.ask(lambda: None)
