"""Two hosts: network namespaces of the test's own, joined by a cable that can be pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid

import pytest

from dsm.limits import PEER_SILENCE_S

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="makes network namespaces: needs root and iproute2",
)

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


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts():
    names = [f"dsm-{uuid.uuid4().hex[:6]}-{i}" for i in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(
            "link",
            "add",
            "cable",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            names[1],
        )
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.213.7.{i + 1}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def run(host, *command, **options):
    """Start a Python process on a host."""
    return subprocess.Popen(
        ["ip", "netns", "exec", host, sys.executable, *command],
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


def test_pages_cross_a_network_and_are_lost_when_the_cable_is_pulled(hosts):
    secret = uuid.uuid4().hex
    first, first_guard, first_socket = manager(hosts[0], "10.213.7.1", secret)
    second, second_guard, second_socket = manager(hosts[1], "10.213.7.2", secret, "--join", "10.213.7.1:7000")
    writer = run(hosts[1], "-c", WRITE, env={**os.environ, "DSM_NODE": second_socket})
    reader = None
    try:
        assert writer.stdout.readline() == "written\n"
        reader = run(hosts[0], "-c", READ, env={**os.environ, "DSM_NODE": first_socket})
        assert reader.stdout.readline() == "2000.0\n"
        ip("-n", hosts[0], "link", "set", "cable", "down")
        said, _ = reader.communicate("\n", timeout=3 * PEER_SILENCE_S)
        assert said.startswith("lost") and "page" in said
    finally:
        for guard in (first_guard, second_guard):
            os.close(guard)
        for process in filter(None, (writer, reader, second, first)):
            process.communicate(timeout=2 * PEER_SILENCE_S)
