"""What tests send a manager that no node in its right mind would: raw connections to either door."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import warnings

import support
from dsm.testing.cluster import Cluster, ManagerProcess, Worker
from dsm.wire import control
from dsm.wire import membership as meta
from dsm.wire.framing import MESSAGE, FrameReader
from dsm.wire.handshake import NO_CLUSTER, NO_NODE, Client
from dsm.wire.header import Family, pack

TIMEOUT_S = 15.0


class Log:
    """What managers have said; `wait(text)` waits until a line contains it."""

    def __init__(self):
        self._file = os.memfd_create("log", os.MFD_CLOEXEC)

    @contextlib.contextmanager
    def taking_errors(self):
        """Processes that are started meanwhile write their errors here."""
        before = os.dup(2)
        os.dup2(self._file, 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)

    def close(self):
        os.close(self._file)

    def read(self):
        return os.pread(self._file, 1 << 24, 0).decode()

    def wait(self, text):
        try:
            support.wait_until(lambda: text in self.read())
        except AssertionError:
            raise AssertionError(f"{text!r} is not in the log:\n{self.read()}") from None


class Known(Cluster):
    """A cluster of one worker a node whose secret the test knows."""

    def __init__(self, nodes=2):
        self.managers, self.workers = [], []
        self.secret = secrets.token_hex(32)
        self.log = Log()
        self._sockets = []
        try:
            for _ in range(nodes):
                self.add_node()
            for rank in range(nodes):
                self.workers.append(Worker(self.managers[rank].socket, rank, nodes, None))
            for worker in self.workers:
                worker.wait_attached(TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def add_node(self):
        options = ["--listen", "127.0.0.1:0", "--ranks", "8"]
        if self.managers:
            options += ["--join", self.managers[0].listen]
        with self.log.taking_errors():
            self.managers.append(ManagerProcess(self.secret, options, None))
        return self.managers[-1]

    def connect(self, node=0):
        """Return a TCP connection to a node's manager."""
        host, port = self.managers[node].listen.rsplit(":", 1)
        sock = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.append(sock)
        return sock

    def hang_up(self):
        """Close every connection that the test has made."""
        while self._sockets:
            self._sockets.pop().close()

    def close(self):
        self.hang_up()
        super().close()
        self.log.close()

    def peer(self, node=0, claim=NO_NODE, cluster=NO_CLUSTER, secret=None):
        """Return an authenticated connection to a node's manager."""
        return Stranger(self.connect(node), (secret or self.secret).encode(), claim, cluster)

    def works(self):
        """Every worker changes a shared array, and sees what the others wrote."""
        for worker in self.workers:
            worker.call(add_one, timeout=TIMEOUT_S)
        counts = {worker.call(total, timeout=TIMEOUT_S) for worker in self.workers}
        assert len(counts) == 1 and counts.pop() % len(self.workers) == 0


def add_one(node):
    with node.lock("cells"):
        node.array("cells", (4, 1024), "i8")[:] += 1


def rows_by_node(node, silent):
    """Ask every node for the page table; return how many rows each gave.  One is expected to be silent."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = node.page_table(node.open("cells"))
    assert [f"node {silent}, which" in str(each.message) for each in caught] == [True]
    return {each: int((table["node"] == each).sum()) for each in sorted(set(table["node"].tolist()))}


def total(node):
    return int(node.array("cells", (4, 1024), "i8")[0, 0])


class Stranger:
    """The other end of an authenticated connection, with its messages."""

    def __init__(self, sock, secret, claim=NO_NODE, cluster=NO_CLUSTER):
        self.sock = sock
        self.reader = FrameReader()
        client = Client(secret, secrets.token_bytes(32), node=claim, cluster=cluster)
        sock.sendall(client.start())
        while not client.done:
            data = sock.recv(4096)
            if not data:
                raise ConnectionError("closed during the handshake")
            sock.sendall(client.feed(data))
        self.peer = client.peer
        if client.leftover:
            self.reader.feed(client.leftover)

    def send(self, family, kind, payload=b"", *, length=None, **fields):
        """Send a header with these fields, and a payload."""
        values = dict(flags=0, node=0, epoch=1, region=0, count=0, request=0, page=0, value=0) | fields
        size = len(payload) if length is None else length
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(pack(family=family, kind=kind, length=size, **values) + payload)

    def tell(self, kind, body, **fields):
        self.send(Family.METADATA, kind, meta.encode(body), **fields)

    def join(self):
        """Ask to be taken in; return the welcome."""
        self.tell(meta.MetaKind.JOIN, meta.Join("127.0.0.1:9"))
        while not isinstance(body := self.message(), meta.Welcome):
            assert body is not None
        return body

    def message(self):
        """Return the next message's body, None when it has none; EOFError at the end."""
        while True:
            event = self.reader.next()
            if event == MESSAGE:
                fields = self.reader.fields
                metadata = fields[2] == Family.METADATA
                return meta.decode(fields[3], self.reader.payload) if metadata else None
            if event:
                self.reader.sink(None)
                continue
            count = self.sock.recv_into(self.reader.space())
            if not count:
                raise EOFError
            self.reader.fill(count)

    def is_closed(self):
        """Wait until the manager has closed this connection; returns what it said last."""
        said = None
        try:
            while True:
                said = self.message() or said
        except (EOFError, ConnectionError):
            return said or True

    def close(self):
        self.sock.close()


def ends(sock):
    """Wait until the manager has closed `sock`; return what it sent."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            data += part
    sock.close()
    return data


class Local:
    """A connection to a node's local socket."""

    def __init__(self, address):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect("\0" + address.removeprefix("@"))  # waits while others do
        self.sock.settimeout(TIMEOUT_S)
        self.number = 0

    def send(self, body):
        self.number += 1
        self.sock.send(control.encode(control.Call(self.number, body)))

    def answer(self):
        """Return the next answer's body; its descriptors are closed."""
        data, ancillary, _, _ = self.sock.recvmsg(1 << 17, socket.CMSG_SPACE(64))
        for _, _, payload in ancillary:
            for (descriptor,) in struct.iter_unpack("i", payload):
                os.close(descriptor)
        return control.decode_answer(data).body

    def ask(self, body):
        self.send(body)
        return self.answer()

    def close(self):
        self.sock.close()
