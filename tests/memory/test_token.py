"""Tokens of leases."""

import uuid

import pytest

from dsm.errors import UsageError
from dsm.memory.token import parse_token, token_of


def test_a_token_is_read_back_also_with_the_dashes_of_a_uuid():
    identity, key = uuid.uuid4(), bytes(range(16))
    assert parse_token(token_of(identity.bytes, key)) == (identity.bytes, key)
    assert parse_token(f"{identity}.{key.hex()}\n") == (identity.bytes, key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "ab",
        "00" * 16,
        "00" * 16 + ".",
        "00" * 16 + "." + "00" * 15,
        "zz" * 16 + "." + "00" * 16,
        7,
        None,
    ],
)
def test_what_is_no_token(text):
    with pytest.raises(UsageError, match="token"):
        parse_token(text)


def test_a_token_that_lacks_a_digit_is_not_shown():
    token = token_of(bytes(16), bytes(range(16)))
    with pytest.raises(UsageError) as raised:
        parse_token(token[:-1])
    assert token[33:40] not in str(raised.value)
