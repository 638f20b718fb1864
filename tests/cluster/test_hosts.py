"""Two hosts, in network namespaces, joined by a network whose cable can be pulled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest

from dsm.limits import PEER_SILENCE_S
from dsm.testing import Network
from dsm.testing.network import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

WRITE = """
import dsm
dsm.attach().array('x', 4_000_000, 'f8')[:] = 2.0
print('written', flush=True)
input()
"""
READ = """
import dsm, sys
n = dsm.attach()
a = n.array('x', 4_000_000, 'f8')
print(float(a[:1000].sum()), flush=True)
input()
try:
    print(float(a[3_000_000:].sum()))
except dsm.PageLostError as error:
    print('lost', error)
"""


@pytest.fixture
def network():
    with Network(2) as network:
        yield network


def run(host, *command, **options):
    """Start a Python process on a host: the words of `Network.command`."""
    return subprocess.Popen(
        [*host, sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def manager(host, address, secret, *options):
    ready, theirs = os.pipe()
    guard, ours = os.pipe()
    process = run(
        host,
        *("-P", "-m", "dsm.manager", "--listen", f"{address}:7000", *options),
        *("--ready-fd", str(theirs), "--guard-fd", str(guard)),
        pass_fds=(theirs, guard),
        env={**os.environ, "DSM_SECRET": secret},
    )
    os.close(theirs)
    os.close(guard)
    with os.fdopen(ready) as file:
        said = json.loads(file.readline())
    return process, ours, said["socket"]


def test_pages_cross_a_network_and_are_lost_when_the_cable_is_pulled(network):
    secret = uuid.uuid4().hex
    hosts, addresses = [network.command(node) for node in (0, 1)], [network.address(node) for node in (0, 1)]
    first, first_guard, first_socket = manager(hosts[0], addresses[0], secret)
    join = ("--join", f"{addresses[0]}:7000")
    second, second_guard, second_socket = manager(hosts[1], addresses[1], secret, *join)
    writer = run(hosts[1], "-c", WRITE, env={**os.environ, "DSM_NODE": second_socket})
    reader = None
    try:
        assert writer.stdout.readline() == "written\n"
        reader = run(hosts[0], "-c", READ, env={**os.environ, "DSM_NODE": first_socket})
        assert reader.stdout.readline() == "2000.0\n"
        pull = ["ip", "-n", network.hosts[0], "link", "set", "net0", "down"]
        subprocess.run(pull, check=True)
        said, _ = reader.communicate("\n", timeout=3 * PEER_SILENCE_S)
        assert said.startswith("lost") and "page" in said
    finally:
        for guard in (first_guard, second_guard):
            os.close(guard)
        for process in filter(None, (writer, reader, second, first)):
            process.communicate(timeout=2 * PEER_SILENCE_S)
