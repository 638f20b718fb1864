"""Many client processes, some of which are killed: what is in use at the end is what was at the beginning."""

import os
import random
import signal
import subprocess
import sys

import dsm
from leasing import idle, served
from support import wait_until

PROGRAM = """
import random, sys, time, dsm
from dsm.errors import FullError, LeaseExpiredError
draw = random.Random(int(sys.argv[2]))
client = dsm.connect(sys.argv[1], timeout=30)
print("ready", flush=True)
mark = bytes([int(sys.argv[2]) % 255 + 1])
while True:
    size = draw.choice((10, 1000, 5000, 70_000, 3 << 20))
    try:
        lease = client.lease(size, draw.choice((0.05, 0.3, 1.5)))
    except FullError:
        continue
    try:
        assert not any(lease.get()), "memory of somebody else"
        lease.set(mark * size)
        if draw.random() < 0.3:
            with client.pipeline() as pipeline:
                results = [pipeline.get(lease, 0, size) for _ in range(5)]
            assert all(each.result() == mark * size for each in results)
        assert lease.get() == mark * size
        if draw.random() < 0.7:
            lease.release()
    except LeaseExpiredError:
        pass
"""


def test_eight_clients_with_random_kills_leave_nothing_in_use():
    draw = random.Random(5)
    with served(size="24M") as (_, said), dsm.connect(said["address"]) as watcher:
        number = 0

        def start():
            nonlocal number
            number += 1
            line = [sys.executable, "-c", PROGRAM, said["address"], str(number)]
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            return process

        clients = [start() for _ in range(8)]
        for _ in range(16):
            before = watcher.figures()["opened"]
            wait_until(lambda before=before: watcher.figures()["opened"] > before + 20, 30)
            victim = draw.randrange(8)
            os.kill(clients[victim].pid, signal.SIGKILL)
            assert clients[victim].communicate()[1] == "", "killed, not failed"
            clients[victim] = start()
        for client in clients:
            assert client.poll() is None, client.communicate()[1]
            client.kill()
            assert client.communicate()[1] == ""
        wait_until(lambda: idle(watcher) and watcher.figures()["connections"] == 1, 10)
        figures = watcher.figures()
        assert figures["free"] == figures["largest_free"] == 24 << 20
        assert figures["opened"] == figures["released"] + figures["expired"] > 300
