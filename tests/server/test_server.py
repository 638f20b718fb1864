"""A lease server and its clients in one process: leases, bytes, errors, limits."""

import pytest

import dsm


@pytest.fixture(scope="module")
def server():
    with dsm.attach(), dsm.Server(size="64M") as server:
        yield server


@pytest.fixture
def client(server):
    with dsm.connect(server.address, timeout=20) as client:
        yield client


def test_a_lease_is_zeros_that_can_be_written_and_read(client):
    with client.lease("100K", "60s") as lease:
        assert lease.get() == bytes(102400)
        lease.set(b"hello", 99_000)
        assert lease.get(98_999, 7) == b"\0hello\0"
        assert lease.nbytes == 102400 and 59 < lease.expires_in <= 60
