"""Addresses as people write them."""

import pytest

from dsm.errors import UsageError
from dsm.wire.address import DEFAULT_PORT, parse_address, show_address


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("host:1", ("host", 1)),
        (":7412", ("", 7412)),
        (":0", ("", 0)),
        ("host", ("host", DEFAULT_PORT)),
        ("", ("", DEFAULT_PORT)),
        ("[::1]:5", ("::1", 5)),
        ("[::1]", ("::1", DEFAULT_PORT)),
        ("::1", ("::1", DEFAULT_PORT)),
        ("[fe80::1%eth0]:9", ("fe80::1%eth0", 9)),
        (" 10.0.0.1:65535 ", ("10.0.0.1", 65535)),
    ],
)
def test_these_are_addresses(text, found):
    assert parse_address(text) == found
    assert parse_address(show_address(*found)) == found


@pytest.mark.parametrize(
    "text", ["host:", "host:x", "host:-1", "host:65536", "[::1", "[::1]5", "a b:1", "h:²", None]
)
def test_these_are_none(text):
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(text)
