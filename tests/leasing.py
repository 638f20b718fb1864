"""What tests of the lease service share: a client of bare bytes, and a server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

from dsm.wire import leases as wire
from dsm.wire.address import parse_address
from dsm.wire.lease_handshake import Client


class Raw:
    """A connection without a client's checks: sends any bytes, receives replies."""

    def __init__(self, address, secret=None, *, greet=True, timeout=10.0):
        self.sock = socket.create_connection(parse_address(address), timeout)
        if greet:
            handshake = Client(secret, os.urandom(32))
            self.sock.sendall(handshake.start())
            while not handshake.done:
                self.sock.sendall(handshake.feed(self.sock.recv(40)))

    def send(self, op, number=1, payload=b"", **fields):
        """Send a request; `payload` as a number announces bytes that are not sent."""
        size = payload if isinstance(payload, int) else len(payload)
        body = b"" if isinstance(payload, int) else payload
        self.sock.sendall(wire.request(op, number, payload=size, **fields) + body)

    def exactly(self, count):
        data = bytearray(count)
        left = memoryview(data)
        while left:
            got = self.sock.recv_into(left)
            if not got:
                raise EOFError(f"{count - len(left)} of {count} bytes")
            left = left[got:]
        return bytes(data)

    def reply(self):
        """Return status, number, payload, a and b of the next reply."""
        _, status, _, number, payload, a, b = wire.REPLY.unpack(self.exactly(32))
        return status, number, self.exactly(payload), a, b

    def ask(self, op, **fields):
        self.send(op, **fields)
        return self.reply()

    def is_closed(self):
        """Wait until the server has closed the connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


@contextlib.contextmanager
def served(*words, environment=None, listen="127.0.0.1:0", size="64M"):
    """Run ``dsm serve``; yield its process and what it said of itself."""
    command = [sys.executable, "-m", "dsm", "serve", "--listen", listen, "--size", size, "--json", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def lasts(lease, seconds, begin):
    """Whether a lease is one that was taken or renewed for so many seconds, not before `begin`."""
    left = lease.expires_in
    return begin + seconds - time.monotonic() - 0.002 <= left <= seconds  # servers count whole milliseconds


def idle(client):
    """Whether nothing of the server's memory is in use."""
    figures = client.figures()
    return figures["used"] == 0 and figures["leases"] == 0
