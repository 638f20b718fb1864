"""The 48-byte header: layout, round trips, and what is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.coherence.messages import Flag, Kind, Message
from dsm.errors import WireError
from dsm.limits import (
    MAX_DATA_BYTES,
    MAX_DIFF_BYTES,
    MAX_JOIN_BYTES,
    MAX_METADATA_BYTES,
    MAX_NODES,
    MAX_NOTICE_BYTES,
)
from dsm.wire import header
from dsm.wire.calls import Op
from dsm.wire.header import HEADER_BYTES, MAGIC, VERSION, Family
from dsm.wire.membership import MetaKind

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)


def test_layout_is_the_documented_one():
    data = header.pack(3, 0x11, 0x22, 0x3344, 0x55667788, 7, 0x99AABBCC, 2, 5, 0x0102030405060708, 9)

    assert len(data) == HEADER_BYTES == 48
    assert data == bytes.fromhex(
        "4453 03 03 11 22 4433 88776655 07000000 ccbbaa99 02000000 05000000 00000000"
        "0807060504030201 0900000000000000"
    )


@given(family=u8, kind=u8, flags=u8, node=u16, epoch=u32, length=u32, region=u32, count=u32,
       request=u32, page=u64, value=u64, before=st.binary(max_size=9))  # fmt: skip
def test_unpack_returns_what_was_packed(before, **given_fields):
    data = before + header.pack(**given_fields) + b"tail"

    assert header.unpack(data, len(before)) == (MAGIC, VERSION, *given_fields.values())


@given(kind=st.sampled_from(Kind), flags=st.integers(0, 15), node=st.integers(0, MAX_NODES - 1), region=u32,
       page=u64, count=u32, request=u32, epoch=u32)  # fmt: skip
def test_coherence_message_round_trip(kind, flags, node, region, page, count, request, epoch):
    message = Message(kind, region, page, count, request, node, flags)
    length = 4096 if kind == Kind.DATA else 0

    fields = header.unpack(header.pack_coherence(message, epoch, length), 0)

    header.check(fields)
    assert header.unpack_coherence(fields) == message
    assert (fields[2], fields[6], fields[7]) == (Family.COHERENCE, epoch, length)


@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_a_number_that_does_not_fit_is_never_sent(number):
    with pytest.raises(struct.error):
        header.pack(1, Kind.GET, 0, 0, 0, 0, 1, number, 1, 0, 0)


def checked(*, magic=MAGIC, version=VERSION, family=1, kind=int(Kind.GET), node=0, length=0):
    header.check((magic, version, family, kind, 0, node, 0, length, 1, 1, 1, 0, 0))


def test_wrong_magic_is_refused():
    with pytest.raises(WireError, match="begin with 0x5448"):
        checked(magic=0x5448)


def test_other_version_names_both():
    with pytest.raises(WireError, match=f"version {VERSION + 6} .* this node version {VERSION}"):
        checked(version=VERSION + 6)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (0, 1),
        (4, 1),
        (255, 255),
        (1, 0),
        (1, 31),
        (1, 255),
        (2, 0),
        (2, 16),
        (2, 31),
        (2, 47),
        (2, 55),
        (3, 0),
        (3, 255),
    ],
)
def test_unknown_family_or_kind_is_refused(family, kind):
    with pytest.raises(WireError, match=f"no message of family {family} has kind {kind}"):
        checked(family=family, kind=kind)


@pytest.mark.parametrize(
    ("family", "kind", "limit"),
    [
        (Family.COHERENCE, Kind.DATA, MAX_DATA_BYTES),
        (Family.COHERENCE, Kind.DIFF, MAX_DIFF_BYTES),
        (Family.COHERENCE, Kind.GET, 0),
        (Family.COHERENCE, Kind.DECLINE, 0),
        (Family.SYNC, Op.LOCK_ACQUIRE, MAX_NOTICE_BYTES),
        (Family.METADATA, MetaKind.JOIN, MAX_JOIN_BYTES),
        (Family.METADATA, MetaKind.READY, 0),
        (Family.METADATA, MetaKind.ASK, MAX_METADATA_BYTES),
    ],
)
def test_length_is_bounded_by_kind(family, kind, limit):
    checked(family=family, kind=kind, length=limit)
    with pytest.raises(WireError, match=f"announces {limit + 1} payload bytes; at most {limit} are allowed"):
        checked(family=family, kind=kind, length=limit + 1)


def test_node_beyond_the_copyset_is_refused_except_in_metadata():
    with pytest.raises(WireError, match=f"names node {MAX_NODES}"):
        checked(node=MAX_NODES)
    checked(family=Family.METADATA, kind=1, node=0xFFFF)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_arbitrary_bytes_are_accepted_or_refused_with_a_reason(data):
    fields = header.unpack(data, 0)
    try:
        header.check(fields)
    except WireError as error:
        assert str(error)
    else:
        assert fields[:2] == (MAGIC, VERSION)
        assert fields[7] <= header.LENGTH_LIMITS[fields[2] << 8 | fields[3]]


def test_flags_fit_their_field():
    assert max(Flag) <= 0xFF
