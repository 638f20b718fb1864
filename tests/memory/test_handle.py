"""What all handles of leases share."""

import pytest

from dsm.errors import NotPermittedError, UsageError
from dsm.memory.handle import LeaseHandle
from dsm.memory.token import parse_token

ID, WRITE, READ = b"i" * 16, b"w" * 16, b"r" * 16


class Handle(LeaseHandle):
    expires_in = 0.0


def test_tokens_have_the_keys_that_there_are():
    both, reader = Handle(ID, WRITE, READ, 10), Handle(ID, None, READ, 10)
    assert parse_token(both.token) == (ID, WRITE) and parse_token(both.read_token) == (ID, READ)
    assert reader.token is None and parse_token(reader.read_token) == (ID, READ)
    assert Handle(ID, WRITE, None, 10).read_token is None
    assert (both.writable, reader.writable) == (True, False)
    assert (both._best_key, reader._best_key) == (WRITE, READ)
    assert (both.key, both.read_key, both.nbytes, both.expired) == (WRITE, READ, 10, True)


def test_what_needs_the_write_key_says_so():
    Handle(ID, WRITE, None, 10)._need_write_key("renewed")
    with pytest.raises(NotPermittedError, match=r"6969.* cannot be renewed: .* read key, .* write key"):
        Handle(ID, None, READ, 10)._need_write_key("renewed")


@pytest.mark.parametrize(("offset", "n", "found"), [(0, None, (0, 10)), (10, None, (10, 0)), (3, 4, (3, 4))])
def test_bytes_of_the_lease(offset, n, found):
    assert Handle(ID, WRITE, READ, 10)._range(offset, n) == found


@pytest.mark.parametrize(
    ("offset", "n", "words"),
    [
        (11, None, "all bytes at offset 11"),
        (-1, None, "all bytes at offset -1"),
        (0, 11, "11 bytes at offset 0"),
        (0, -1, "-1 bytes"),
        pytest.param(0, 10**5000, "<int> bytes", id="huge"),
        ("0", 1, "offset <str>"),
        (0, 1.0, "<float> bytes"),
        (True, 1, "offset True"),
    ],
)
def test_bytes_that_are_not_its_own(offset, n, words):
    with pytest.raises(UsageError, match=words):
        Handle(ID, WRITE, READ, 10)._range(offset, n)
