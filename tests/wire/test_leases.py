"""The lease service's messages: fixed bytes, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import DSMError, FullError, Status, UsageError, WireError
from dsm.limits import MAX_LEASE_ERROR_BYTES
from dsm.units import MAX_DURATION_MS
from dsm.wire import leases as wire
from dsm.wire.leases import Op, Row

U64 = st.integers(0, 2**64 - 1)


def test_a_request_has_these_bytes():
    header = wire.request(Op.SET, 0x01020304, payload=5, offset=6, count=5, token=bytes(range(32)))
    assert header.hex() == (
        "03000000" "04030201" "0500000000000000" "0600000000000000" "0500000000000000"
        "000102030405060708090a0b0c0d0e0f" "101112131415161718191a1b1c1d1e1f"
    )  # fmt: skip


def test_a_reply_has_these_bytes():
    assert wire.reply(Op.GET, 7, b"abc", 3, 59).hex() == (
        "02000000" "07000000" "0300000000000000" "0300000000000000" "3b00000000000000" "616263"
    )  # fmt: skip
    assert wire.error_reply(Op.GET, 7, Status.FULL, "no").hex() == (
        "02130000" "07000000" "0200000000000000" "0000000000000000" "0000000000000000" "6e6f"
    )  # fmt: skip


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535), U64, U64, U64)
def test_any_header_is_judged_without_surprise(op, flags, zero, payload, offset, count):
    try:
        wire.check_request(op, flags, zero, payload, offset, count)
    except (WireError, UsageError) as error:
        assert str(error)
        return
    assert op in Op.__members__.values() and not flags and not zero
    assert not payload or (op == Op.SET and payload == count)
    if op in (Op.LEASE, Op.RENEW):
        assert 1 <= offset <= MAX_DURATION_MS


@given(
    st.sampled_from(Op), st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**32 - 1), U64,
    st.integers(0, 10**9),
)  # fmt: skip
def test_a_reply_is_taken_only_for_what_was_asked(op, status, zero, number, payload, most):
    try:
        wire.check_reply((Op.GET, 5), op, status, zero, number, payload, most)
    except WireError:
        return
    assert (op, number, zero) == (Op.GET, 5, 0)
    assert payload <= (MAX_LEASE_ERROR_BYTES if status else most)


def test_an_error_keeps_its_class_and_words():
    reply = wire.error_reply(Op.LEASE, 1, Status.FULL, "größer")
    error = wire.error_of(reply[1], reply[32:])
    assert type(error) is FullError and str(error) == "größer"
    assert type(wire.error_of(200, b"?")) is WireError
    assert isinstance(wire.error_of(Status.USAGE, b"\xff"), DSMError)


def test_a_long_error_is_cut_between_letters():
    reply = wire.error_reply(Op.LEASE, 1, Status.FULL, "ü" * 5000 + "x")
    assert len(reply) - 32 <= MAX_LEASE_ERROR_BYTES
    assert set(reply[32:].decode()) == {"ü"}


def test_rows_and_figures_come_back():
    row = Row(bytes(range(16)), 1, 2, 3, True)
    assert wire.rows(row.pack() * 2) == [row, row]
    with pytest.raises(WireError, match="no rows"):
        wire.rows(bytes(47))
    figures = dict(zip(wire.FIGURES, range(len(wire.FIGURES)), strict=True))
    packed = wire.pack_figures(figures)
    assert wire.unpack_figures(packed) == wire.unpack_figures(packed + bytes(16)) == figures
    with pytest.raises(WireError):
        wire.unpack_figures(packed[:-8])
