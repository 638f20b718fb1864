"""The lease client in C: it passes the test vectors and talks to a real server."""

import os
import subprocess
from pathlib import Path

import pytest

import dsm

ROOT = Path(__file__).parents[2]
SECRET = "a secret that is longer than one block of SHA-256, which has 64 bytes, so that it is hashed first"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    binary = tmp_path_factory.mktemp("c") / "lease_client"
    source = ROOT / "examples" / "lease_client.c"
    line = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", binary, source]
    built = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    return binary


def _run(*words, secret=None):
    environment = {name: value for name, value in os.environ.items() if name != "DSM_SECRET"}
    if secret is not None:
        environment["DSM_SECRET"] = secret
    return subprocess.run(words, capture_output=True, text=True, timeout=30, env=environment)


def test_it_passes_the_vectors(command):
    vectors = sorted((ROOT / "tests" / "vectors").glob("lease*.txt"))
    done = _run(command, "vectors", *vectors)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "18 cases passed\n"


def test_it_notices_a_wrong_vector(command, tmp_path):
    for name, old, new in (
        ("leases.txt", "a 1024", "a 1025"),
        ("lease_handshake.txt", "proof 44534d4c", "proof 44534d4d"),
    ):
        wrong = tmp_path / name
        wrong.write_text((ROOT / "tests" / "vectors" / name).read_text().replace(old, new, 1))
        done = _run(command, "vectors", wrong)
        assert done.returncode == 2
        assert "is not as it should be" in done.stderr


@pytest.mark.parametrize("secret", [None, "sixteen bytes or", SECRET])
def test_it_leases_writes_reads_and_releases(command, secret):
    with dsm.attach() as node, dsm.Server(size="1M", secret=secret, node=node) as server:
        where = server.address.split(":")
        with dsm.connect(server.address, secret=secret or False) as client:

            def ask(*words):
                done = _run(command, *where, *words, secret=secret)
                assert done.returncode == 0, done.stderr
                return done.stdout

            assert ask("ping") == "version 1\n"
            token = ask("lease", "1024", "60000").strip()
            ask("set", token, "5", "hello")
            assert ask("get", token, "4", "7") == "\0hello\0"
            lease = client.open(token)
            assert lease.get(5, 5) == b"hello"
            ask("renew", token, "300000")
            assert 290 < client.open(token).expires_in <= 300
            ask("release", token)
            gone = _run(command, *where, "get", token, "0", "1", secret=secret)
            assert gone.returncode == 1
            assert "status 16" in gone.stderr and "was released" in gone.stderr


def test_it_tells_a_wrong_secret(command):
    with dsm.attach() as node, dsm.Server(size="1M", secret=SECRET, node=node) as server:
        where = server.address.split(":")
        assert "another secret" in _run(command, *where, "ping", secret=SECRET + "!").stderr
        assert "asks for its secret" in _run(command, *where, "ping").stderr
    with dsm.attach() as node, dsm.Server(size="1M", node=node) as server:
        assert "could be any" in _run(command, *server.address.split(":"), "ping", secret=SECRET).stderr
