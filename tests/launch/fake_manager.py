"""A manager that manages nothing: it keeps the launcher's contract and can be told to break it.

FAKE_MANAGER in its environment: ``error`` refuses, ``silent`` ends without a word, ``crash`` prints a
traceback, ``slow`` is never ready, ``deaf`` ignores SIGTERM.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import sys

from dsm.parent import wake_at_its_death

parser = argparse.ArgumentParser()
for option in ("--name", "--listen", "--join", "--ranks", "--ready-fd", "--guard-fd"):
    parser.add_argument(option)
options = parser.parse_args()
mode = os.environ.get("FAKE_MANAGER", "")
ready = int(options.ready_fd)


def say(line):
    os.write(ready, json.dumps(line).encode() + b"\n")
    os.close(ready)


if mode == "error" and options.join:
    say({"error": "no such cluster", "status": 4})
    sys.exit(1)
if mode == "crash":
    raise RuntimeError("the manager is broken")
if mode == "slow":
    print("starting", file=sys.stderr, flush=True)
    signal.pause()
if mode == "silent":
    sys.exit(3)
if (
    (options.listen or options.join)
    and not os.environ.get("DSM_SECRET")
    and not os.environ.get("DSM_SECRET_FILE")
):
    say({"error": "no secret", "status": 10})
    sys.exit(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else lambda *_: sys.exit(0))

name = f"dsm-{options.name or secrets.token_hex(8)}"
local = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
local.bind("\0" + name)
local.listen()
listen = None
if options.listen:
    host, _, port = options.listen.rpartition(":")
    server = socket.create_server((host, int(port)))
    listen = "{}:{}".format(*server.getsockname())
wake_at_its_death()
node = 0
if options.join:
    host, _, port = options.join.rpartition(":")
    node = 1
    socket.create_connection((host, int(port))).close()
say({"node": node, "socket": "@" + name, "listen": listen, "pid": os.getpid()})

groups = []
with os.fdopen(int(options.guard_fd), "rb") as guard:
    for line in guard:
        word, number = line.split()
        assert word == b"group"
        groups.append(int(number))
for group in groups:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
