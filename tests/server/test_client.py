"""What a client does when its server is slow, gone or no server; and what importing it needs."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import dsm
from dsm.client.connection import _timeval
from dsm.wire import leases as wire
from support import wait_until


class Liar:
    """A server of one connection after the other: shakes hands, then does what the test says."""

    def __init__(self, *acts):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.acts = acts
        self.heard = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        for act in self.acts:
            try:
                connection = self.sock.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(40, socket.MSG_WAITALL)
                connection.sendall(b"DSML\1\4\0\0" + bytes(32))
                act(self, connection)

    def request(self, connection):
        data = connection.recv(64, socket.MSG_WAITALL)
        if len(data) < 64:
            return None
        fields = wire.REQUEST.unpack(data)
        self.heard.append(wire.Op(fields[0]))
        if fields[4]:
            connection.recv(fields[4], socket.MSG_WAITALL)
        return fields

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self.thread.join(10)
        self.sock.close()


def _hang_up(liar, connection):
    liar.request(connection)


def _serve(liar, connection):
    while (fields := liar.request(connection)) is not None:
        payload, a = b"", 0
        if fields[0] == wire.Op.INFO:
            payload = wire.Row(fields[7][:16], 100, 1000, 0, True).pack()
        elif fields[0] == wire.Op.GET:
            payload = bytes(fields[6])
        elif fields[0] == wire.Op.LEASE:
            payload, a = bytes(48), 100
        connection.sendall(wire.reply(fields[0], fields[3], payload, a, 1000))


def _silent(liar, connection):
    liar.request(connection)
    connection.recv(1)


TOKEN = "0" * 32 + "." + "0" * 32


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.ping(),
        lambda client: client.open(TOKEN),
        lambda client: client._connection.get(bytes(32), 0, 10),
        lambda client: client._connection.set(bytes(32), 0, b"x"),
        lambda client: client._connection.set(bytes(32), 0, bytes(1 << 20)),
        lambda client: client._renew(bytes(32), 10),
    ],
)
def test_what_may_be_done_twice_is_asked_once_more_when_the_connection_breaks(ask):
    with Liar(_hang_up, _serve) as liar, dsm.connect(liar.address, timeout=5) as client:
        ask(client)
        assert len(liar.heard) == 2


@pytest.mark.parametrize(
    "ask", [lambda client: client.lease(100, 1), lambda client: client._release(bytes(32))]
)
def test_what_may_not_be_done_twice_is_not(ask):
    with Liar(_hang_up, _serve) as liar, dsm.connect(liar.address, timeout=5) as client:
        with pytest.raises(dsm.NodeLostError, match="may have done it all the same"):
            ask(client)
        assert len(liar.heard) == 1
        client.ping()  # a new connection


def test_a_request_that_surely_did_not_leave_is_sent_on_a_new_connection():
    def close(liar, connection):
        pass

    with Liar(close, _serve) as liar, dsm.connect(liar.address, timeout=5) as client:
        assert select.select([client._connection._sock], [], [], 10)[0], "it is closed"
        client._connection._used_ns = 0  # long ago
        assert client.lease(100, 1).nbytes == 100


def test_a_connection_that_breaks_twice_is_told():
    with (
        Liar(_hang_up, _hang_up) as liar,
        dsm.connect(liar.address, timeout=5) as client,
        pytest.raises(dsm.NodeLostError, match="broke in PING"),
    ):
        client.ping()


def test_a_silent_server_is_given_up_and_its_late_reply_is_nobodys():
    with Liar(_silent, _serve) as liar, dsm.connect(liar.address, timeout=20) as client:
        client._connection.timeout = 0.2
        client._connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(0.2))
        begin = time.monotonic()
        with pytest.raises(dsm.WaitTimeoutError, match=r"did not answer PING within 0\.2 s"):
            client.ping()
        assert 0.15 < time.monotonic() - begin < 15
        client._connection.timeout = 20
        client.ping()


def test_the_timeout_is_that_of_every_connection():
    with Liar(_serve, _serve) as liar, dsm.connect(liar.address, timeout=20) as client:
        for _ in range(2):
            client.ping()
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                held = client._connection._sock.getsockopt(socket.SOL_SOCKET, option, len(_timeval(20)))
                assert held == _timeval(20)
            client._connection.drop()


def test_a_handshake_that_does_not_come_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        with pytest.raises(dsm.WaitTimeoutError, match=r"within 0\.2 s"):
            dsm.connect(address, timeout=0.2)


def test_who_is_no_lease_server_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = "{}:{}".format(*other.getsockname())

        def answer():
            with other.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-x\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(dsm.WireError, match="not the handshake of dsm's lease service"):
            dsm.connect(address, timeout=5)
        thread.join(5)


@pytest.mark.parametrize(
    "lie",
    [
        lambda number: wire.reply(wire.Op.GET, number + 1, bytes(10)),
        lambda number: wire.reply(wire.Op.SET, number),
        lambda number: wire.reply(wire.Op.GET, number, bytes(11)),
        lambda number: wire.REPLY.pack(2, 0, 0, number, 1 << 62, 0, 0),
        lambda number: wire.REPLY.pack(2, 5, 0, number, 1 << 62, 0, 0),
        lambda number: wire.reply(wire.Op.GET, number, bytes(10)) + b"more",
    ],
)
def test_a_reply_that_answers_nothing_ends_the_connection(lie):
    def act(liar, connection):
        connection.sendall(lie(liar.request(connection)[3]))
        with contextlib.suppress(ConnectionResetError):
            connection.recv(1)

    with Liar(act, _serve) as liar, dsm.connect(liar.address, timeout=5) as client:
        try:
            assert client._connection.get(bytes(32), 0, 10) == bytes(10)  # what came behind it is not read
        except dsm.WireError:
            assert client._connection._sock is None


def test_a_call_that_is_interrupted_leaves_nothing_for_the_next():
    class Interrupted(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with Liar(_silent, _serve) as liar, dsm.connect(liar.address, timeout=20) as client:
            main = threading.main_thread().ident
            waker = threading.Thread(
                target=lambda: (wait_until(lambda: liar.heard, 10), signal.pthread_kill(main, signal.SIGUSR1))
            )
            waker.start()
            with pytest.raises(Interrupted):
                client._connection.get(bytes(32), 0, 10)
            waker.join(10)
            assert client._connection.get(bytes(32), 0, 7) == bytes(7)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_pipeline_leaves_no_request_that_seems_not_sent(client, monkeypatch):
    def interrupt(asked):
        raise KeyboardInterrupt

    with client.lease(10, 60) as lease:
        pipeline = client.pipeline()
        results = [pipeline.get(lease, 0, 1) for _ in range(3)]
        monkeypatch.setattr(client._connection, "exchange", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.execute()
        monkeypatch.undo()
        for result in results:
            with pytest.raises(KeyboardInterrupt):
                result.result()


def test_close_ends_a_wait_of_another_thread():
    found = []
    with Liar(_silent) as liar:
        client = dsm.connect(liar.address, timeout=20)

        def wait():
            try:
                client.ping()
            except dsm.DSMError as error:
                found.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: liar.heard, 5)
        client.close()
        thread.join(5)
        assert isinstance(found[0], dsm.ClosedError)
        with pytest.raises(dsm.ClosedError, match="connect again"):
            client.ping()
        client.close()


def test_a_client_that_is_closed_watches_nothing(server):
    client = dsm.connect(server.address)
    lease = client.lease(10, "50ms")
    client.close()
    with pytest.raises(dsm.ClosedError, match="connect again"):
        lease.on_expiry(print)


def test_a_child_of_fork_has_a_connection_of_its_own(client):
    lease = client.lease(100, 60)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            lease.set(b"child")
            os.write(writer, lease.get(0, 5))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    for _ in range(50):
        assert lease.get(50, 2) == b"\0\0"
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 10) == lease.get(0, 5) == b"child"
    os.close(reader)
    lease.release()


def test_the_environment_says_which_server(server, monkeypatch):
    monkeypatch.setenv("DSM_SERVER", server.address)
    with dsm.connect() as client:
        assert client.address == server.address
    monkeypatch.setenv("DSM_SERVER", "nonsense:port")
    with pytest.raises(dsm.UsageError, match="DSM_SERVER is 'nonsense:port'"):
        dsm.connect()


@pytest.mark.parametrize("timeout", [0, -1, "1", True])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(dsm.UsageError, match="timeout"):
        dsm.connect("127.0.0.1:1", timeout=timeout)


def test_ipv6_addresses_are_served(node):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with dsm.Server("[::1]:0", "1M", node=node) as server, dsm.connect(server.address) as client:
        assert server.address.startswith("[::1]:")
        assert client.ping() < 10


def test_a_client_needs_neither_numpy_nor_the_shim(server):
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "cffi", "_cffi_backend", "msgspec") or "_native" in name:
            raise ImportError(name + " is not to be had")
sys.meta_path.insert(0, Refuse())
import asyncio, dsm
with dsm.connect({server.address!r}) as client, client.lease(100, 60) as lease:
    lease.set(b"hello")
    print(lease.get(0, 5).decode())
async def main():
    async with await dsm.connect_async({server.address!r}) as client:
        print(await client.ping() < 10)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("hello\nTrue\n", "")


@pytest.mark.parametrize(("act", "error"), [("ping", dsm.UsageError), ("close", dsm.ClosedError)])
def test_a_call_that_interrupts_another_does_not_wait_for_it(act, error):
    def interrupt(number, frame):
        getattr(client, act)()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with Liar(_silent) as liar:
            client = dsm.connect(liar.address, timeout=20)
            main = threading.main_thread().ident
            waker = threading.Thread(
                target=lambda: (wait_until(lambda: liar.heard, 10), signal.pthread_kill(main, signal.SIGUSR1))
            )
            waker.start()
            begin = time.monotonic()
            with pytest.raises(error):
                client._connection.get(bytes(32), 0, 10)
            assert time.monotonic() - begin < 10
            waker.join(10)
            assert client._connection._sock is None
            client.close()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_close_ends_a_handshake_of_another_thread():
    found = []
    with Liar(_hang_up) as liar, socket.create_server(("127.0.0.1", 0)) as silent:
        client = dsm.connect(liar.address, timeout=20)
        client._connection.address = silent.getsockname()
        client._connection.drop()

        def ask():
            try:
                client.ping()
            except dsm.DSMError as error:
                found.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        with silent.accept()[0] as connection:
            connection.recv(40, socket.MSG_WAITALL)
            begin = time.monotonic()
            client.close()
            thread.join(5)
        assert time.monotonic() - begin < 4
        assert isinstance(found[0], dsm.ClosedError)


def test_results_of_a_pipeline_that_broke_say_so():
    with Liar(_serve, _hang_up, _hang_up) as liar, dsm.connect(liar.address, timeout=5) as client:
        lease = client.lease(100, 1)
        client._connection.drop()
        with pytest.raises(dsm.NodeLostError, match="broke in GET"), client.pipeline() as pipeline:
            results = [pipeline.get(lease, i, 1) for i in range(3)]
        for result in results:
            with pytest.raises(dsm.NodeLostError, match="broke in GET"):
                result.result()


def test_answers_that_come_before_their_requests_end_the_connection():
    over = threading.Event()

    def answer_all(liar, connection):
        number = liar.request(connection)[3]
        wait_until(lambda: not select.select([], [client._connection._sock], [], 0.1)[1], what="it is full")
        connection.sendall(
            wire.reply(wire.Op.GET, number, bytes(10_000)) + wire.reply(wire.Op.SET, number + 1)
        )
        over.wait(20)  # and says nothing more

    with Liar(answer_all) as liar, dsm.connect(liar.address, timeout=5) as client:
        client._connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        asked = [(wire.Op.GET, bytes(32), 0, 10_000, b""), (wire.Op.SET, bytes(32), 0, 10**7, bytes(10**7))]
        try:
            with pytest.raises(dsm.WireError, match="not asked yet"):
                client._connection.exchange(asked)
        finally:
            over.set()


def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(dsm.UsageError, match="no address"):
        dsm.connect("a" * 100 + ".org:1")


def test_a_child_of_fork_holds_no_connection_that_asks_for_ends(server, client):
    wait_until(lambda: server.figures()["connections"] == 1, what="nobody else is connected")
    with client.clone() as other:
        lease = other.lease(10, 60)
        lease._lasts(0)  # as far as it knows
        lease.on_expiry(lambda lease: None)
        wait_until(lambda: server.figures()["connections"] == 3)  # it has asked once
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
        os.close(reader)
        try:
            lease.release()  # nobody asks about ends any more
            wait_until(lambda: server.figures()["connections"] == 2)
        finally:
            os.close(writer)
            os.waitpid(child, 0)


def test_close_does_not_wait_for_a_thread_that_connects(server):
    """The one that asks about ends, of a server that drops what is sent to it."""
    with contextlib.ExitStack() as full:
        deaf = full.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than it takes
            sock = full.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(deaf.getsockname())
        client = dsm.connect(server.address, timeout=30)
        lease = client.lease(10, 60)
        client._connection.address = deaf.getsockname()  # that of the thread's connection, too
        lease._lasts(0)
        lease.on_expiry(lambda lease: None)
        connecting = client._watcher._connection.lock
        wait_until(lambda: not (connecting.acquire(blocking=False) and connecting.release() is None))
        begin = time.monotonic()
        client.close()
        assert time.monotonic() - begin < 5
    wait_until(lambda: not [each for each in threading.enumerate() if each.name == "dsm-expiry"], 20)


def test_a_connection_that_is_dropped_ends_though_a_child_of_fork_has_its_socket(server, client):
    wait_until(lambda: server.figures()["connections"] == 1, what="nobody else is connected")
    with client.clone() as other, other._connection._sock.dup():  # as a child that forked while it connected
        other._connection.drop()
        wait_until(lambda: server.figures()["connections"] == 1)
