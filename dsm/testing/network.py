"""Hosts for the nodes of a job: network namespaces on one switch, whose ports can be isolated.

Owns the namespaces, from their making to their end.  Two isolated ports of a bridge exchange nothing, but
both still reach everybody else: so one link is cut and no other, and packets are lost as on a broken cable,
without an error at either end.

Their names say which process made them: what one that was killed left behind, the next one removes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from typing import Self

from dsm.errors import LimitError

#: Where iproute2 keeps the names.
_NAMESPACES = "/run/netns"


def why_not() -> str:
    """Return why this process cannot make network namespaces, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (package iproute2)"
    return ""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise LimitError(
            f"`ip {' '.join(words)}` failed: {done.stderr.strip()}; are network namespaces allowed here?"
        )


def _remove_left_behind() -> None:
    """Remove namespaces whose maker is gone."""
    for name in os.listdir(_NAMESPACES) if os.path.isdir(_NAMESPACES) else ():
        made = re.fullmatch(r"dsm-(\d+)-[0-9a-f]{6}-(?:\d+|switch)", name)
        if made and not os.path.exists(f"/proc/{made[1]}"):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Network:
    """A switch and hosts, each with one address; also a context manager.

    Parameters
    ----------
    nodes : int
        How many hosts.

    Raises
    ------
    LimitError
        When this process cannot make network namespaces; `why_not` says so beforehand.
    """

    def __init__(self, nodes: int) -> None:
        _remove_left_behind()
        name = f"dsm-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._switch = f"{name}-switch"
        self.hosts = [f"{name}-{node}" for node in range(nodes)]
        self._isolated: set[int] = set()
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        switch = self._switch
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge", "forward_delay", "0")
        _ip("-n", switch, "link", "set", "switch", "up")
        for node, host in enumerate(self.hosts):
            _ip("netns", "add", host)
            port = f"port{node}"
            ends = (port, "netns", switch, "type", "veth", "peer", "name", "net0", "netns", host)
            _ip("link", "add", *ends)
            _ip("-n", switch, "link", "set", port, "master", "switch")
            _ip("-n", switch, "link", "set", port, "up")
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", host, "addr", "add", f"{self.address(node)}/24", "dev", "net0")
            _ip("-n", host, "link", "set", "net0", "up")

    @staticmethod
    def address(node: int) -> str:
        """Return the address of a host; nothing outside these namespaces has it."""
        return f"10.213.8.{node + 1}"

    def command(self, node: int) -> list[str]:
        """Return the words that run the command behind them on that host, under the same process id."""
        return ["ip", "netns", "exec", self.hosts[node]]

    def cut(self, one: int, other: int) -> None:
        """Let nothing through between two hosts.  One link at a time: two cuts isolate all four hosts."""
        self._isolate(one, True)
        self._isolate(other, True)

    def heal(self) -> None:
        """Let everything through again."""
        for node in sorted(self._isolated):
            self._isolate(node, False)

    def _isolate(self, node: int, on: bool) -> None:
        port = (f"port{node}", "type", "bridge_slave", "isolated", "on" if on else "off")
        _ip("-n", self._switch, "link", "set", *port)
        (self._isolated.add if on else self._isolated.discard)(node)

    def close(self) -> None:
        """Remove the namespaces, and everything in them."""
        for name in (*self.hosts, self._switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def remains(self) -> list[str]:
        """Return which of the namespaces still exist."""
        return [name for name in (*self.hosts, self._switch) if os.path.exists(f"{_NAMESPACES}/{name}")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
