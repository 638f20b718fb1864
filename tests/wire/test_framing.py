"""Cutting streams into messages: any split gives the same messages; garbage ends the stream."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsm.coherence.messages import Kind
from dsm.errors import InternalError, WireError
from dsm.wire import header
from dsm.wire.framing import AFTER_BULK_BYTES, MESSAGE, NEED_MORE, RECEIVED, SINK, FrameReader
from dsm.wire.header import HEADER_BYTES, Family
from dsm.wire.membership import MetaKind

SMALL_BUFFER = 256
ASK = int(MetaKind.ASK)
SMALL_INLINE = 100


def frame(family, kind, payload=b"", *, number=0):
    return header.pack(family, kind, 0, 0, 0, len(payload), 1, 1, number, number, 0) + payload


class Receiver:
    """Drives a reader the way a manager does, but out of a byte string, `step` bytes at a time."""

    def __init__(self, reader, pieces=1, targets=lambda length: bytearray(length)):
        self.reader = reader
        self.pieces = pieces
        self.targets = targets
        self.messages = []
        self.memory = None

    def receive(self, data, steps):
        position = 0
        while position < len(data):
            space = self.reader.space()
            assert len(space) > 0, "an empty space would look like the end of the stream"
            count = min(len(space), next(steps), len(data) - position)
            space[:count] = data[position : position + count]
            position += count
            self.reader.fill(count)
            self.take()

    def take(self):
        reader = self.reader
        while event := reader.next():
            if event == MESSAGE:
                self.messages.append((reader.fields, bytes(reader.payload)))
            elif event == SINK:
                length = reader.fields[7]
                assert reader.missing == length
                self.memory = self.targets(length)
                if self.memory is None:
                    reader.sink(None)
                    continue
                view = memoryview(self.memory)
                size = -(-length // self.pieces)
                reader.sink([view[i : i + size] for i in range(0, length, size)])
            else:
                assert event == RECEIVED and reader.missing == 0
                self.messages.append((reader.fields, bytes(self.memory or b"thrown away")))


def forever(counts):
    while True:
        yield from counts


def expected(frames):
    return [(header.unpack(data, 0), data[HEADER_BYTES:]) for data in frames]


payloads = st.binary(max_size=SMALL_INLINE) | st.integers(101, 1500).map(
    lambda n: bytes(i % 251 for i in range(n))
)
frames_strategy = st.lists(
    st.one_of(
        st.builds(frame, st.just(Family.COHERENCE), st.sampled_from([Kind.GET, Kind.CONFIRM])),
        st.builds(frame, st.just(Family.COHERENCE), st.just(Kind.DATA), payloads),
        st.builds(frame, st.just(Family.SYNC), st.just(32)),
        st.builds(frame, st.just(Family.METADATA), st.just(ASK), payloads),
    ),
    max_size=12,
)
steps_strategy = st.lists(st.integers(1, 400), min_size=1, max_size=20)


@given(frames=frames_strategy, steps=steps_strategy, pieces=st.integers(1, 5))
@example(frames=[frame(1, Kind.DATA, b"x" * 500), frame(1, Kind.GET)], steps=[1], pieces=3)
@example(frames=[frame(3, ASK, b"y" * 100)] * 6, steps=[149], pieces=1)
def test_any_split_of_the_stream_yields_the_same_messages(frames, steps, pieces):
    receiver = Receiver(FrameReader(SMALL_BUFFER, SMALL_INLINE), pieces)

    receiver.receive(b"".join(frames), forever(steps))

    assert receiver.messages == expected(frames)
    assert receiver.reader.idle


@given(frames=frames_strategy, steps=steps_strategy)
def test_the_usual_buffer_yields_the_same_messages(frames, steps):
    receiver = Receiver(FrameReader())

    receiver.receive(b"".join(frames), forever(steps))

    assert receiver.messages == expected(frames)


@given(frames=frames_strategy.filter(bool), cut=st.integers(0, 2000), steps=steps_strategy)
def test_a_truncated_message_is_never_delivered(frames, cut, steps):
    receiver = Receiver(FrameReader(SMALL_BUFFER, SMALL_INLINE))
    keep = max(0, len(frames[-1]) - 1 - cut % len(frames[-1]))

    receiver.receive(b"".join(frames[:-1]) + frames[-1][:keep], forever(steps))

    assert receiver.messages == expected(frames[:-1])
    assert receiver.reader.next() == NEED_MORE
    assert receiver.reader.idle == (keep == 0)


@given(frames=frames_strategy, garbage=st.binary(min_size=HEADER_BYTES, max_size=300), steps=steps_strategy)
def test_garbage_raises_and_the_stream_stays_dead(frames, garbage, steps):
    garbage = b"GET " + garbage[4:]
    receiver = Receiver(FrameReader(SMALL_BUFFER, SMALL_INLINE))

    with pytest.raises(WireError, match="not a dsm message"):
        receiver.receive(b"".join(frames) + garbage, forever(steps))

    assert receiver.messages == expected(frames)
    for again in (receiver.reader.next, receiver.reader.space, lambda: receiver.reader.fill(1)):
        with pytest.raises(WireError, match="not a dsm message"):
            again()


@settings(max_examples=200)
@given(data=st.binary(max_size=600), steps=steps_strategy)
def test_arbitrary_bytes_end_in_messages_or_wire_error(data, steps):
    receiver = Receiver(FrameReader(SMALL_BUFFER, SMALL_INLINE))
    try:
        receiver.receive(data, forever(steps))
    except WireError:
        assert len(data) >= HEADER_BYTES
    else:
        assert len(receiver.messages) <= len(data) // HEADER_BYTES


def test_page_payload_that_came_with_its_header_is_one_message():
    reader = FrameReader()
    data = frame(Family.COHERENCE, Kind.DATA, bytes(range(256)) * 16)
    reader.space()[: len(data)] = data
    reader.fill(len(data))

    assert reader.next() == MESSAGE
    assert reader.payload == data[HEADER_BYTES:]
    assert reader.next() == NEED_MORE


def test_the_rest_of_a_page_payload_bypasses_the_buffer():
    reader = FrameReader()
    data = frame(Family.COHERENCE, Kind.DATA, b"a" * 10_000)
    reader.space()[:1048] = data[:1048]
    reader.fill(1048)
    frames = bytearray(10_000)

    assert reader.next() == SINK
    reader.sink(memoryview(frames))
    assert reader.next() == NEED_MORE
    assert reader.missing == 9000
    space = reader.space()
    assert space.obj is frames and len(space) == 9000
    space[:] = data[1048:]
    reader.fill(9000)
    assert reader.next() == RECEIVED
    assert bytes(frames) == b"a" * 10_000
    assert len(reader.space()) == AFTER_BULK_BYTES, "the next bulk header should bring little payload with it"


@given(
    length=st.integers(1, 1200),
    first=st.integers(0, 1200),
    second=st.integers(0, 1200),
    steps=steps_strategy,
    drain=st.booleans(),
)
def test_a_payload_can_be_diverted_while_it_arrives(length, first, second, steps, drain):
    reader = FrameReader(SMALL_BUFFER, SMALL_INLINE)
    payload = bytes(i % 255 + 1 for i in range(length))
    data = frame(Family.COHERENCE, Kind.DATA, payload) + frame(Family.COHERENCE, Kind.GET)
    wanted, scratch = bytearray(length), bytearray(length)
    step = forever(steps)
    position, diverted_at = 0, None
    events = []
    while position < len(data):
        space = reader.space()
        count = min(len(space), next(step), len(data) - position)
        space[:count] = data[position : position + count]
        position += count
        reader.fill(count)
        while event := reader.next():
            events.append(event)
            if event == SINK:
                half = length // 2
                reader.sink([memoryview(wanted)[:half], memoryview(wanted)[half:]])
        if diverted_at is None and events and events[-1] == SINK and length - reader.missing >= first:
            diverted_at = length - reader.missing
            reader.sink(None if drain else memoryview(scratch))

    if events == [MESSAGE, MESSAGE]:  # it came as a whole
        return
    assert events == [SINK, RECEIVED, MESSAGE]
    stop = length if diverted_at is None else diverted_at
    assert bytes(wanted) == payload[:stop] + bytes(length - stop)
    assert bytes(scratch) == (bytes(length) if drain else bytes(stop) + payload[stop:])


def test_a_payload_may_be_thrown_away():
    receiver = Receiver(FrameReader(SMALL_BUFFER, SMALL_INLINE), targets=lambda length: None)

    receiver.receive(frame(1, Kind.DATA, b"x" * 5000) + frame(1, Kind.GET), forever([77]))

    assert [payload for _, payload in receiver.messages] == [b"thrown away", b""]


def test_bytes_left_over_from_the_handshake_come_first():
    reader = FrameReader()
    data = frame(Family.SYNC, 32, number=1) + frame(Family.METADATA, ASK, b"hello", number=2)
    reader.feed(data[:60])
    receiver = Receiver(reader)
    receiver.take()

    receiver.receive(data[60:], forever([1000]))

    assert [fields[10] for fields, _ in receiver.messages] == [1, 2]


def test_more_left_over_bytes_than_the_buffer_holds_are_refused():
    with pytest.raises(WireError, match="300 bytes"):
        FrameReader(SMALL_BUFFER, SMALL_INLINE).feed(bytes(300))


def test_misuse_by_the_driver_is_told():
    reader = FrameReader(SMALL_BUFFER, SMALL_INLINE)
    with pytest.raises(InternalError, match="no payload is under way"):
        reader.sink(None)
    data = frame(1, Kind.DATA, b"12345678")[:-1]
    reader.space()[: len(data)] = data
    reader.fill(len(data))
    assert reader.next() == SINK
    for early in (reader.space, reader.next, lambda: reader.fill(1)):
        with pytest.raises(InternalError, match="between SINK and sink"):
            early()
    with pytest.raises(InternalError, match="given 7 bytes for a payload of 8"):
        reader.sink(memoryview(bytearray(7)))
    reader.sink(memoryview(bytearray(8)))
    with pytest.raises(InternalError, match="beyond the space"):
        reader.fill(2)
    full = FrameReader(SMALL_BUFFER, SMALL_INLINE)
    full.space()[:] = bytes(SMALL_BUFFER)
    full.fill(SMALL_BUFFER)
    with pytest.raises(InternalError, match="before next"):
        full.space()
