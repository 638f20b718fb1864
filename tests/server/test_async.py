"""The lease service from asyncio: many requests on one connection, cancelled ones, broken connections."""

import asyncio
import threading

import pytest

import dsm
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
