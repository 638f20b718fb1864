"""Control messages: what is encoded is decoded; arbitrary bytes raise msgspec's errors and nothing else."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsm.types import ArrayLayout, HeapOptions, HeapRecord, Region, RegionOptions, SyncObject
from dsm.wire import control, heaps, membership
from dsm.wire.control import Answer, Call, decode_answer, decode_call, encode

DECODERS = {"call": decode_call, "answer": decode_answer}
LAYOUT = ArrayLayout((4, 4), '"<f8"', "F")
OPTIONS = RegionOptions(128, "grid", home=3, fill=b"\x00\xff", layout=LAYOUT)
HEAP = HeapOptions("work", "lazy", "pooled", 1 << 20, 0, 4096, "sequential", False)
BLOCK = heaps.DebugBlock(1 << 46, 100, 16, "a.py:5", "b.py:7")
CALLS = [
    control.Attach(12),
    control.CreateRegion(OPTIONS, ready=False),
    control.OpenRegion("grid"),
    control.OpenRegion(7),
    control.RegionReady(7),
    control.CloseRegion(7),
    control.DestroyRegion("grid"),
    control.ListRegions(),
    control.OpenSync("barrier", "b", 3),
    control.ListNodes(),
    control.GetStatistics(),
    heaps.OpenHeap(HEAP, ("kind",), (1, 2)),
    heaps.FindHeap("work"),
    heaps.FindHeap(7, (7,)),
    heaps.DestroyHeap(7),
    heaps.HeapTake(7, 3, 32),
    heaps.HeapGive(7, 2, (1 << 46, 1 << 47)),
    heaps.HeapAllocate(7, 100, 64, "a.py:5"),
    heaps.HeapFree(7, 1, 1 << 46, 100, "a.py:5"),
    heaps.HeapRetire(7, 1, (1 << 46,)),
    heaps.HeapGuarded(7, 1, 1 << 46),
    heaps.HeapGrow(7, 1, 1 << 46, 200, 100),
    heaps.HeapUnasked(7, 1, 3, 4000),
    heaps.HeapFind(7, 1, 1 << 46),
    heaps.HeapTrim(7),
    heaps.HeapFigures(7),
    heaps.HeapCheck(7),
    heaps.HeapBlocks(7, 1, 5),
]
ANSWERS = [
    control.Attached(0, 1, 2, 3, 4, "c", True),
    control.Opened(Region(1, OPTIONS, 0x5800_0020_0000, (0, 1)), True),
    control.RegionList([]),
    control.SyncOpened(SyncObject(1, "lock", "l", 0)),
    control.NodeList([0, 5]),
    control.Statistics({"faults": 1}, [0, 1]),
    control.Done(),
    control.Failed(10, "why"),
    heaps.HeapOpened(HeapRecord(7, HEAP), True),
    heaps.HeapTaken(3, (1 << 46,), (5,), (6,)),
    heaps.HeapGiven((1 << 46,), (5,)),
    heaps.HeapAllocated(1 << 46, 112, True, (5,)),
    heaps.HeapFreed((BLOCK,)),
    heaps.HeapGrown(True, 200),
    heaps.HeapFound(100, 16, "a.py:5"),
    heaps.HeapCounted((heaps.PoolCount(0, requested=-5),), 1, 4096, (2,)),
    heaps.HeapChecked("why", (2,)),
    heaps.HeapListed((BLOCK,), True, (5,)),
]
BETWEEN_NODES = [
    (membership.MetaKind.ASK_HEAP, heaps.AskHeap(heaps.HeapHome(7, ((1 << 46, 100),)))),
    (membership.MetaKind.ASK_HEAP, heaps.AskHeap(heaps.HeapFlush(7))),
    (membership.MetaKind.HEAP, heaps.HeapTold(heaps.HeapDone())),
    (membership.MetaKind.HEAP, heaps.HeapTold(heaps.HeapRefused(10, "why"))),
]

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20)
    | st.binary(max_size=20) | st.sampled_from(["type", "Attach", "number", "body", "options"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("body", CALLS, ids=lambda body: type(body).__name__)
def test_call_round_trip(body):
    assert decode_call(encode(Call(9, body))) == Call(9, body)


@pytest.mark.parametrize("body", ANSWERS, ids=lambda body: type(body).__name__)
def test_answer_round_trip(body):
    assert decode_answer(encode(Answer(9, body))) == Answer(9, body)


@pytest.mark.parametrize(("kind", "body"), BETWEEN_NODES, ids=lambda each: type(each).__name__)
def test_round_trip_between_nodes(kind, body):
    assert membership.decode(kind, memoryview(membership.encode(body))) == body
    with pytest.raises(msgspec.MsgspecError):
        membership.decode(kind, memoryview(membership.encode({"body": {"type": "HeapTake"}})))


def refuses_or_decodes(decode, data):
    try:
        decode(data)
    except msgspec.MsgspecError as error:
        assert str(error)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
class TestDecoding:
    @settings(max_examples=300)
    @given(data=st.binary(max_size=200))
    def test_arbitrary_bytes(self, decode, data):
        refuses_or_decodes(decode, data)

    @given(value=values)
    def test_arbitrary_messagepack(self, decode, value):
        refuses_or_decodes(decode, msgspec.msgpack.encode(value))

    @given(number=values, body=values, tag=st.sampled_from([*CALLS, *ANSWERS]))
    def test_wrong_types_in_the_right_places(self, decode, number, body, tag):
        name = type(tag).__name__
        fields = dict.fromkeys(tag.__struct_fields__, body)
        refuses_or_decodes(
            decode, msgspec.msgpack.encode({"number": number, "body": {"type": name, **fields}})
        )
        refuses_or_decodes(decode, msgspec.msgpack.encode({"number": 1, "body": {"type": name, **fields}}))

    @settings(max_examples=300)
    @given(
        message=st.sampled_from([*CALLS, *ANSWERS]),
        flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255))),
    )
    def test_flipped_bytes(self, decode, message, flips):
        cls = Call if message in CALLS else Answer
        data = bytearray(encode(cls(1, message)))
        for position, mask in flips:
            data[position % len(data)] ^= mask
        refuses_or_decodes(decode, bytes(data))

    @given(message=st.sampled_from([*CALLS, *ANSWERS]), cut=st.integers(1))
    def test_truncated(self, decode, message, cut):
        cls = Call if message in CALLS else Answer
        data = encode(cls(1, message))
        with pytest.raises(msgspec.DecodeError):
            decode(data[: -1 - cut % len(data)])

    def test_deep_nesting(self, decode):
        for opening in (b"\x91", b"\x81\xa4body", b"\x82\xa6number\x01\xa4body\x81\xa4type"):
            refuses_or_decodes(decode, opening * 20_000)

    def test_lengths_that_are_not_there(self, decode):
        for claim in (
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
        ):
            refuses_or_decodes(decode, claim)
            refuses_or_decodes(decode, b"\x82\xa6number\x01\xa4body" + claim)


def test_a_request_that_is_wrong_can_still_be_answered():
    wrong = control.encode(control.Call(7, control.OpenRegion(None)))
    with pytest.raises(msgspec.MsgspecError):
        control.decode_call(wrong)
    assert control.number_of(wrong) == 7
    for data in (b"", b"\xff", b"\x91" * 100_000, control.encode({"number": "x"}), control.encode([7])):
        assert control.number_of(data) is None
