"""The lease service from asyncio: many requests on one connection, cancelled ones, broken connections."""

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time
import types

import pytest

import dsm
from dsm.client import asynchronous, protocol
from dsm.client.protocol import Protocol
from dsm.wire import leases as wire
from leasing import Raw
from support import wait_until


def _run(server, work, **options):
    async def main():
        async with await dsm.connect_async(server.address, timeout=20, **options) as client:
            await asyncio.wait_for(work(client), 60)

    asyncio.run(main())


def test_requests_of_many_tasks_are_under_way_together(server):
    async def work(client):
        async with await client.lease("1M", "60s") as lease:
            await asyncio.gather(*(lease.set(bytes([i]) * 4096, 4096 * i) for i in range(256)))
            found = await asyncio.gather(*(lease.get(4096 * i, 4096) for i in range(256)))
            assert found == [bytes([i]) * 4096 for i in range(256)]

    _run(server, work)


@pytest.mark.parametrize("count", [0, 1, 65_504, 65_505, 65_536, 5_000_001])
def test_bytes_of_every_size_come_back(server, count):
    async def work(client):
        async with await client.lease(count + 1, 60) as lease:
            data = bytes(range(251)) * (count // 251 + 1)
            await lease.set(data[:count])
            large, small = await asyncio.gather(lease.get(0, count), lease.get(count, 1))
            assert large == data[:count] and small == b"\0"

    _run(server, work)


def test_what_cannot_be_asked_disturbs_no_other_request(server, node):
    """The memory of a mapped lease that has ended raises while its bytes are copied for the request."""
    ended = node.lease("1M", "60s")
    array = ended.array()
    ended.release()

    async def work(client):
        async with await client.lease("1M", "60s") as lease, await client.lease("1K", "60s") as other:
            for size in (1000, 1 << 20):
                innocent = asyncio.create_task(other.set(b"innocent"))
                with pytest.raises(dsm.LeaseExpiredError):
                    await lease.set(array[:size])
                for wrong in (2**63, 2**64):
                    with pytest.raises(dsm.TooLargeError):
                        await client.lease(wrong, 1)
                await innocent
                assert await other.get(0, 8) == b"innocent"
            assert await lease.get() == bytes(1 << 20)

    _run(server, work)


def test_a_cancelled_request_takes_nothing_from_the_others(server):
    async def work(client):
        async with await client.lease("8M", 60) as lease:
            await lease.set(b"abc", 1)
            tasks = [asyncio.create_task(lease.get(0, 1 << 20)) for _ in range(30)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(each, asyncio.CancelledError) for each in done] == [
                i % 3 == 0 for i in range(30)
            ]
            assert all(each[1:4] == b"abc" for i, each in enumerate(done) if i % 3)
            assert await lease.get(1, 3) == b"abc"

    _run(server, work)


def test_everything_a_client_can_ask(server):
    async def work(client):
        lease = await client.lease(100, 60)
        reader = await client.open(lease.read_token)
        assert (await reader.get(), reader.writable) == (bytes(100), False)
        with pytest.raises(dsm.NotPermittedError):
            await reader.set(b"x")
        await lease.renew("5m")
        assert 290 < (await client.open(lease.token)).expires_in <= 300
        assert [each.id for each in await client.leases()] == [lease.id]
        assert (await client.figures())["leases"] == 1
        assert await client.ping() < 10
        async with await client.clone() as other:
            await (await other.open(lease.token)).release()
        with pytest.raises(dsm.LeaseExpiredError):
            await lease.get()
        with pytest.raises(dsm.UsageError):
            await lease.get(99, 2)
        with pytest.raises(dsm.TooLargeError):
            await client.lease("1G", 1)

    _run(server, work)


def test_expiry_is_told_in_the_loop(server):
    async def work(client):
        told = asyncio.Queue()
        lease = await client.lease(10, "100ms")
        lease.on_expiry(told.put)
        assert await told.get() is lease

    _run(server, work)


def test_expiry_is_told_in_time_when_a_lease_is_renewed_for_less(server):
    async def work(client):
        told = asyncio.Queue()
        lease = await client.lease(10, 60)
        lease.on_expiry(told.put)
        await asyncio.sleep(0)
        await lease.renew("50ms")
        assert await asyncio.wait_for(told.get(), 5) is lease

    _run(server, work)


def test_a_client_may_be_closed_by_who_is_told_of_an_end(server):
    async def work(client):
        closed = asyncio.Event()

        async def close(lease):
            await other.close()
            await asyncio.sleep(0)
            closed.set()

        other = await client.clone()
        lease = await other.lease(10, 60)
        with pytest.raises(dsm.UsageError, match="callback is a NoneType"):
            lease.on_expiry(None)
        lease.on_expiry(close)
        await lease.release()
        await asyncio.wait_for(closed.wait(), 5)
        with pytest.raises(dsm.ClosedError, match="connect again"):
            lease.on_expiry(close)

    _run(server, work)


def test_a_connection_that_broke_is_made_again(server):
    async def work(client):
        lease = await client.lease(10, 60)
        closed = threading.Event()

        def close():
            for connection in list(server._service._connections.values()):
                connection.close("a test")
            closed.set()

        server._service.call(close)
        closed.wait(10)
        assert await lease.get() == bytes(10)
        await lease.release()

    _run(server, work)


def test_a_server_that_is_gone_is_told(node):
    async def main():
        with dsm.Server(size="1M", node=node) as server:
            client = await dsm.connect_async(server.address)
            lease = await client.lease(10, 60)
        with pytest.raises(dsm.NodeLostError, match="no lease server answers"):
            await lease.get()
        with pytest.raises(dsm.NodeLostError):
            await dsm.connect_async(server.address)
        await client.close()
        with pytest.raises(dsm.ClosedError):
            await client.ping()

    asyncio.run(main())


def test_a_silent_server_is_given_up(server):
    async def work(client):
        lease = await client.lease(10, 60)
        client._timeout = 0.2
        goes_on = threading.Event()
        stands = threading.Event()
        server._service.call(lambda: (stands.set(), goes_on.wait(10)))
        stands.wait(10)
        with pytest.raises(dsm.WaitTimeoutError, match=r"did not answer GET within 0\.2 s"):
            await lease.get()
        goes_on.set()
        client._timeout = 20
        assert await lease.get() == bytes(10)
        await lease.release()

    _run(server, work)


def test_a_secret_is_proven(node):
    secret = "a secret of sixteen bytes"

    async def work(client):
        assert await client.ping() < 10

    with dsm.Server(size="1M", secret=secret, node=node) as server:
        _run(server, work, secret=secret)
        for wrong in (False, secret + "!"):
            with pytest.raises(dsm.AuthenticationError):
                _run(server, work, secret=wrong)


def test_a_client_that_is_closed_leaves_no_connection(server):
    async def work(client):
        others = [await client.clone() for _ in range(10)]
        for other in others:
            await other.close()

    _run(server, work)
    wait_until(lambda: not server.figures()["connections"], 5)


def test_a_reply_that_nobody_asked_for_ends_the_connection(server):
    async def main():
        sent = asyncio.Event()

        async def lie(reader, writer):
            await reader.readexactly(40)
            writer.write(b"DSML\1\4\0\0" + bytes(32))
            await reader.readexactly(64)
            writer.write(b"\2" * 96)
            sent.set()
            await reader.read()
            writer.close()

        liar = await asyncio.start_server(lie, "127.0.0.1", 0)
        async with liar:
            port = liar.sockets[0].getsockname()[1]
            client = await dsm.connect_async(f"127.0.0.1:{port}", timeout=5)
            with pytest.raises(dsm.WireError, match="no lease server of this version"):
                await client.ping()
            assert sent.is_set()
            await client.close()

    asyncio.run(main())


def test_a_raw_client_beside_it_notices_nothing(server):
    async def work(client):
        with Raw(server.address) as raw:
            async with await client.lease(10, 60):
                assert raw.ask(9)[0] == 0

    _run(server, work)


# -- a server that is slow, or does not read ---------------------------------------------------------------


class _Slow:
    """A server that takes a SET in pieces, each when the test lets it, and answers what follows."""

    def __init__(self, *, takes=lambda: None, reads=True):
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen()
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.takes, self.reads = takes, reads
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection = self.sock.accept()[0]
                self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self.threads[-1].start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(40, socket.MSG_WAITALL)
            if self.reads is None:  # not even the handshake is answered
                self.over.wait(60)
                return
            connection.sendall(b"DSML\1\4\0\0" + bytes(32))
            if not self.reads:
                self.over.wait(60)
                return
            while len(head := connection.recv(64, socket.MSG_WAITALL)) == 64:
                op, _, _, number, left, *_ = wire.REQUEST.unpack(head)
                while left:
                    piece = connection.recv(min(left, 1 << 20))
                    if not piece:
                        return
                    left -= len(piece)
                    self.takes()
                connection.sendall(wire.reply(op, number, b"", 0, 1000))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.sock.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        for thread in self.threads:
            thread.join(20)
        self.sock.close()


@contextlib.asynccontextmanager
async def _connected(address, timeout):
    """Connect, and be less patient from then on: how soon a thread answers the handshake says nothing."""
    async with await dsm.connect_async(address, secret=False, timeout=20) as client:
        client._timeout = timeout
        yield client


def _set(client, nbytes):
    return client._ask(wire.Op.SET, token=bytes(32), count=nbytes, data=memoryview(bytes(nbytes)))


def test_waiting_for_room_ends_with_the_timeout():
    async def main(address):
        async with _connected(address, 0.5) as client:
            full = asyncio.create_task(_set(client, 32 << 20))
            await asyncio.sleep(0)  # it has handed its bytes over
            assert client._protocol.room is not None
            full.cancel()
            with pytest.raises(dsm.WaitTimeoutError, match=r"did not answer PING within 0\.5 s"):
                await asyncio.wait_for(client.ping(), 20)

    with _Slow(reads=False) as slow:
        asyncio.run(main(slow.address))


def test_what_is_taken_slowly_but_steadily_is_no_silence(monkeypatch):
    """By a clock that goes on while the server takes a piece, and only then."""

    def take():
        nonlocal now
        now += 0.05
        time.sleep(0.002)  # so that pieces are small

    async def main(address):
        async with _connected(address, 1.0) as client:
            sock = client._protocol._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # what is in there is not seen
            await asyncio.gather(_set(client, 12 << 20), client.ping())
            assert now > 1.5  # the timeout was over long before the bytes were taken

    now = 0.0
    clock = types.SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    for module in (asynchronous, protocol):
        monkeypatch.setattr(module, "time", clock)
    with _Slow(takes=take) as slow:
        asyncio.run(main(slow.address))


def test_who_waits_with_others_is_told_of_its_own_request():
    async def main(address):
        async with _connected(address, 0.3) as client:
            first, second = await asyncio.gather(client.ping(), client.figures(), return_exceptions=True)
            assert "PING" in str(first) and "FIGURES" in str(second)

    with _Slow(reads=False) as slow:
        asyncio.run(main(slow.address))


# -- connecting --------------------------------------------------------------------------------------------


def test_many_tasks_wait_together_for_a_server_that_does_not_answer():
    async def main(address):
        async with _connected(address, 0.5) as client:
            slow.reads = None
            client._protocol.close()
            found = await asyncio.gather(*(client.ping() for _ in range(20)), return_exceptions=True)
            assert [type(each) for each in found] == [dsm.WaitTimeoutError] * 20
            assert len({id(each) for each in found}) == 20
            assert client._tries <= 3, "not each of them has tried"

    with _Slow() as slow:
        asyncio.run(main(slow.address))


def test_a_client_that_is_closed_while_it_connects_keeps_no_connection(server):
    async def work(client):
        other = await client.clone()
        other._protocol.close()
        asked = asyncio.create_task(other.ping())
        await asyncio.sleep(0)
        await other.close()
        with pytest.raises(dsm.ClosedError):
            await asked

    _run(server, work)
    wait_until(lambda: not server.figures()["connections"], 5)


def test_a_connection_that_breaks_in_a_request_is_not_used_for_the_next(server, caplog):
    async def work(client):
        await client.ping()
        client._protocol._transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        found = await asyncio.gather(*(client.ping() for _ in range(20)))
        assert max(found) < 10

    _run(server, work)
    assert not caplog.records  # asyncio logs what is written to a broken connection


def test_a_client_belongs_to_the_loop_that_connected_it(server):
    client = None

    async def connect():
        nonlocal client
        client = await dsm.connect_async(server.address)
        return asyncio.create_task(client.ping())

    async def use():
        with pytest.raises(dsm.UsageError, match="another event loop"):
            await client.ping()
        await client.close()

    asyncio.run(connect())
    asyncio.run(use())
    wait_until(lambda: not server.figures()["connections"], 5)
    with pytest.warns(ResourceWarning, match="unclosed"):  # its loop ended first
        client = None
        gc.collect()


def test_a_child_of_fork_does_not_keep_a_connection_that_is_closed(server):
    async def work(client):
        other = await client.clone()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
        os.close(reader)
        try:
            await other.close()
            wait_until(lambda: server.figures()["connections"] == 1, 5)
        finally:
            os.close(writer)
            os.waitpid(child, 0)

    _run(server, work)


def test_a_child_of_fork_that_drops_a_connection_does_not_cut_its_parents(server):
    async def work(client):
        child = os.fork()
        if not child:
            try:
                client._protocol.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        protocol = client._protocol
        assert await client.ping() < 10 and client._protocol is protocol

    _run(server, work)


def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(dsm.UsageError, match="no address"):
        asyncio.run(dsm.connect_async("a" * 100 + ".org:1"))


def test_bytes_of_a_set_that_was_cancelled_are_not_looked_at_any_more():
    class Transport(asyncio.Transport):
        def write(self, data):
            written.append(data)

        def is_closing(self):
            return False

    async def main():
        protocol = Protocol(None, asyncio.get_running_loop())
        protocol._transport = Transport()
        data = bytearray(b"a") * 100_000
        protocol.ask(wire.Op.SET, bytes(32), 0, len(data), memoryview(data), 0)
        data[:] = b"b" * len(data)
        assert bytes(written[-1]) == b"a" * 100_000
        data = bytes(100_000)
        protocol.ask(wire.Op.SET, bytes(32), 0, len(data), memoryview(data), 0)
        assert written[-1].obj is data  # these cannot change

    written = []
    asyncio.run(main())
