"""What strangers' bytes may do: one function an entry point, for hypothesis and for `make fuzz`.

Each takes arbitrary bytes and returns when the code behind the entry point did what it documents: it
handled them, or refused them with the error it names.  Anything else is an exception here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator

import msgspec

from dsm.coherence.messages import Kind
from dsm.errors import AuthenticationError, LimitError, Status, WireError
from dsm.limits import MAX_METADATA_BYTES
from dsm.manager import border
from dsm.server.service import Service
from dsm.types import ArrayLayout, Region, RegionOptions, SyncObject
from dsm.wire import control, lease_handshake, leases
from dsm.wire import header as headers
from dsm.wire import membership as meta
from dsm.wire.framing import MESSAGE, SINK, FrameReader
from dsm.wire.handshake import NO_CLUSTER, NO_NODE, Client, Server
from dsm.wire.header import HEADER_BYTES, LENGTH_LIMITS, Family

SECRET = b"a secret that the fuzzer does not know"
CLUSTER = bytes(range(1, 17))
#: Id, write key and read key of a lease.
LEASE = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))


def header(data: bytes) -> None:
    """Any 48 bytes are a header within its limits, or refused."""
    if len(data) < HEADER_BYTES:
        return
    fields = headers.unpack(data, 0)
    try:
        headers.check(fields)
    except WireError as error:
        assert str(error)
        return
    assert fields[7] <= LENGTH_LIMITS[fields[2] << 8 | fields[3]] <= MAX_METADATA_BYTES
    if fields[2] == Family.COHERENCE:
        again = headers.pack_coherence(headers.unpack_coherence(fields), fields[6], fields[7])
        assert again[:28] == data[:28] and again[32:40] == data[32:40]


def framing(data: bytes) -> None:
    """A stream, cut anywhere, is messages and then maybe an error that stays."""
    if not data:
        return
    step, stream, position = 1 + data[0], data[1:], 0
    reader = FrameReader(512, 128)
    while position < len(stream):
        try:
            space = reader.space()
            assert len(space)
            part = stream[position : position + min(step, len(space))]
            space[: len(part)] = part
            position += len(part)
            reader.fill(len(part))
            _take(reader)
        except WireError as error:
            try:
                reader.next()
            except WireError as again:
                assert again is error
                return
            raise AssertionError("a stream that was refused goes on") from None
    assert reader.missing >= 0


def _take(reader: FrameReader) -> None:
    while event := reader.next():
        length = reader.fields[7]
        if event == MESSAGE:
            assert len(reader.payload) == length
        elif event == SINK:
            reader.sink(memoryview(bytearray(length)) if length < 4096 else None)


def stranger(data: bytes) -> None:
    """Whoever does not know the secret authenticates to neither side."""
    for engine in (Client(SECRET, b"c" * 32), Server(SECRET, b"s" * 32, node=0, cluster=CLUSTER)):
        if isinstance(engine, Client):
            engine.start()
        try:
            for low in range(0, len(data), 50):
                engine.feed(data[low : low + 50])
                assert len(engine._received) < 100
        except (AuthenticationError, WireError) as error:
            assert str(error) and len(engine.refusal) in (0, 7)
        assert not engine.done and engine.peer is None


def middleman(data: bytes) -> None:
    """Both sides know the secret, and somebody between them changes bytes: as `data` says.

    Each three bytes are a message (of four), a place in it, and what to add to the byte there.
    """
    changes: dict[int, list[tuple[int, int]]] = {}
    for which, place, amount in struct.iter_unpack("3B", data[: len(data) // 3 * 3]):
        changes.setdefault(which % 4, []).append((place, amount))
    client = Client(SECRET, b"c" * 32, node=3, epoch=2, cluster=CLUSTER)
    server = Server(SECRET, b"s" * 32, node=0, epoch=2, cluster=CLUSTER, admits=lambda node: None)
    changed = False

    def through(number: int, message: bytes) -> bytes:
        nonlocal changed
        after = bytearray(message)
        for place, amount in changes.get(number, ()):
            after[place % len(after)] = (after[place % len(after)] + amount) & 0xFF
        changed |= bytes(after) != message
        return bytes(after)

    try:
        hello = through(0, client.start())
        proof = through(2, client.feed(through(1, server.feed(hello))))
        welcome = server.feed(proof)
        assert not changed, "the server believes what was changed on its way"
        client.feed(through(3, welcome))
        assert not changed, "the client believes what was changed on its way"
        assert client.done and server.done
    except (AuthenticationError, WireError) as error:
        assert str(error) and changed
        assert not (client.done and server.done)


def local(data: bytes) -> None:
    """Requests and answers on the local socket."""
    for decode in (control.decode_call, control.decode_answer):
        try:
            found = decode(data)
        except msgspec.MsgspecError as error:
            assert str(error)
        else:
            assert decode(control.encode(found)) == found
    number = control.number_of(data)
    assert number is None or isinstance(number, int)


def metadata(data: bytes) -> None:
    """Payloads of the metadata family; the first byte is the kind."""
    if not data:
        return
    kind, payload = data[0], memoryview(data)[1:]
    try:
        body = meta.decode(kind, payload)
        border.metadata(body, 1)
        if isinstance(body, meta.Ask):
            border.question(body)
    except (msgspec.MsgspecError, WireError) as error:
        assert str(error)
        return
    if body is not None:
        assert meta.decode(kind, memoryview(meta.encode(body))) == body


def lease_stranger(data: bytes) -> None:
    """Whoever does not know the secret of a lease server gets through to neither side."""
    for engine in (lease_handshake.Client(SECRET, b"c" * 32), lease_handshake.Server(SECRET, b"s" * 32)):
        if isinstance(engine, lease_handshake.Client):
            engine.start()
        try:
            for low in range(0, len(data), 50):
                engine.feed(data[low : low + 50])
                assert len(engine._received) < 100
        except (AuthenticationError, LimitError, WireError) as error:
            assert str(error) and len(engine.refusal) in (0, 40)
        assert not engine.done


class _Memory:
    """What a lease server leases, without a node."""

    address = 1 << 21
    nbytes = 1 << 16

    def __init__(self) -> None:
        self.view = memoryview(bytearray(self.nbytes))

    @property
    def lost(self) -> bool:
        """Whether an error is being handled: then it does not cost the connection, but comes out here."""
        return sys.exc_info()[0] is not None

    def zero(self, offset: int, nbytes: int, give_back: bool) -> None:
        self.view[offset : offset + nbytes] = bytes(nbytes)


def lease_client(data: bytes) -> None:
    """A client of a lease server says anything, in pieces: it hears replies, and the books stay right.

    It may use a lease of 1000 bytes, with id and keys of `LEASE`; the one beside it is not its own.
    """
    if not data:
        return
    step, stream = 1 + data[0] * 8, data[1:]
    service = Service([], _Memory(), None)
    mine, theirs = socket.socketpair()
    try:
        now = service.now_ms()
        lease = service.book.lease(now, 1000, 10**9, *LEASE)
        other = service.book.lease(now, 1000, 10**9, *(bytes(reversed(each)) for each in LEASE))
        start = other.address - service.memory.address
        service.memory.view[start : start + 1000] = b"o" * 1000
        mine.setblocking(False)
        connection = service.begin(theirs, "fuzzer")
        connection._handshake = None
        service.admit(connection)
        heard = b""
        for low in range(0, len(stream), step):
            mine.send(stream[low : low + step])
            connection.turn(select.EPOLLIN)
            service._on_time()
            heard += _drain(mine)
            if connection.closed:
                break
        _check_replies(heard + _drain(mine))
        service.book.check()
        assert lease.high <= lease.nbytes and not other.high
        assert bytes(service.memory.view[start : start + 1000]) == b"o" * 1000
    finally:
        mine.close()
        service.close()


def _drain(sock: socket.socket) -> bytes:
    heard = b""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while part := sock.recv(1 << 16):
            heard += part
    return heard


def _check_replies(heard: bytes) -> None:
    while heard:
        _, status, zero, _, payload, a, b = leases.REPLY.unpack_from(heard)
        body = heard[leases.REPLY_BYTES : leases.REPLY_BYTES + payload]
        assert len(body) == payload and not zero
        if status:
            assert (a, b) == (0, 0) and body.decode()
            assert Status(status) != Status.INTERNAL
        heard = heard[leases.REPLY_BYTES + payload :]


TARGETS: list[Callable[[bytes], None]] = [
    header, framing, stranger, middleman, local, metadata, lease_stranger, lease_client,
]  # fmt: skip


def one(data: bytes) -> None:
    """Choose the target by the first byte."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def seeds() -> Iterator[bytes]:
    """Good messages of every kind, from which a fuzzer departs."""
    options = RegionOptions(8192, "x", fill=b"\1", layout=ArrayLayout((4, 4), '"<f8"'))
    region = Region(1, options, 0x5800_0020_0000, (0, 1))
    bodies: dict[int, object] = {
        1: meta.Join("127.0.0.1:7000"),
        2: meta.Welcome(1, 2, "00" * 16, 4, [meta.Member(0, "a:1")], [region]),
        4: meta.Members(3, [0, 1], 2),
        5: meta.Ask(3, control.CreateRegion(options)),
        6: meta.Told(meta.FoundRegions([region])),
        7: region,
        9: SyncObject(1, "lock", "l", 1, 0),
        13: meta.Ranks({3: 1}),
        22: meta.AskPages(1, 0, 5),
        23: meta.PagesTold(bytes(26)),
    }
    yield from (b"\5" + bytes([kind]) + meta.encode(body) for kind, body in bodies.items())
    for body in (
        control.Attach(1, 2),
        control.OpenRegion("x"),
        control.OpenSync("atomic", "a", 3),
        control.GetPages("x", 0, 5, (0, 1)),
    ):
        yield b"\4" + control.encode(control.Call(1, body))
    for answer in (control.Opened(region, True), control.Failed(3, "why"), control.NodeList([0, 1])):
        yield b"\4" + control.encode(control.Answer(1, answer))
    stream = b""
    for family, kind, payload in (
        (1, Kind.GET, b""), (1, Kind.DATA, bytes(64)), (2, 32, b""), (3, 5, bytes(300)), (3, 11, b""),
    ):  # fmt: skip
        packed = headers.pack(family, kind, 0, 1, 2, len(payload), 1, 1, 1, 0, 0) + payload
        stream += packed
        yield b"\0" + packed
    yield b"\1" + bytes([16]) + stream
    client = Client(SECRET, b"d" * 32, node=NO_NODE, cluster=NO_CLUSTER)
    server = Server(SECRET, b"t" * 32, node=0, cluster=CLUSTER)
    hello = client.start()
    challenge = server.feed(hello)
    proof = client.feed(challenge)
    yield b"\2" + hello + proof
    yield b"\2" + challenge + server.feed(proof)
    lease_engine, lease_server = (
        lease_handshake.Client(SECRET, b"d" * 32),
        lease_handshake.Server(SECRET, b"t" * 32),
    )
    hello = lease_engine.start()
    challenge = lease_server.feed(hello)
    proof = lease_engine.feed(challenge)
    yield b"\6" + hello + proof
    yield b"\6" + challenge + lease_server.feed(proof)
    writer, reader = LEASE[0] + LEASE[1], LEASE[0] + LEASE[2]
    stream = b""
    for op, token, offset, count, payload in (
        (1, bytes(32), 60_000, 100, b""), (2, writer, 5, 10, b""), (3, writer, 990, 10, bytes(10)),
        (2, reader, 0, leases.TO_THE_END, b""), (3, reader, 0, 3, b"abc"), (4, writer, 10**6, 0, b""),
        (6, reader, 0, 0, b""), (7, bytes(32), 0, 10, b""), (8, bytes(32), 0, 0, b""),
        (9, bytes(32), 0, 0, b""), (5, writer, 0, 0, b""),
    ):  # fmt: skip
        packed = (
            leases.request(op, 7, payload=len(payload), offset=offset, count=count, token=token) + payload
        )
        stream += packed
        yield b"\7\x20" + packed
    yield b"\7\x07" + stream
    yield b"\3"
    yield b"\3" + bytes([0, 5, 1, 2, 7, 9])
