"""Rows of the lease service: `get` and `set` over loopback TCP, against Redis' ``GET`` and ``SET``.

Owns the two servers of a measurement and the loops of their clients.  Both servers and the client run on
the same processors; a round measures one after the other.  Redis is Debian's ``redis-server``, its client
redis-py with hiredis (extra ``bench``); without them the values stand alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from dsm.bench import measure
from dsm.bench.row import Row, combine

_SMALL = 4096
_LARGE = 64 << 20
_BATCH = 64
#: Operations of a round: single ones, batches, large ones.
_SINGLES = 3000
_BATCHES = 60
_LARGES = 3
_START_S = 20.0

#: What one side does, by row: each returns the seconds of one operation.
Side = dict[str, Callable[[], float]]


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Measure `get` and `set`: one at a time, 64 in one go, and large ones."""
    names = {
        "get 4 KiB": ("us", 0.8),
        "set 4 KiB": ("us", 0.8),
        f"get 4 KiB, {_BATCH} pipelined, each": ("us", 1.3),
        f"set 4 KiB, {_BATCH} pipelined, each": ("us", 1.3),
        "get 64 MiB": ("ms", 0.5),
        "set 64 MiB": ("ms", 0.5),
    }
    lacking = lack_of_redis()
    for placement, cpus in measure.placements():
        with contextlib.ExitStack() as stack:
            stack.enter_context(_placed(cpus))
            ours = stack.enter_context(_our_side())
            theirs = {} if lacking else stack.enter_context(_redis_side())
            for name, (unit, target) in names.items():
                values, floors = [], []
                for turn in range(measure.ROUNDS):
                    progress(f"{name}, {placement}: round {turn + 1} of {measure.ROUNDS}")
                    scale = 1e6 if unit == "us" else 1e3
                    values.append(ours[name]() * scale)
                    if theirs:
                        floors.append(theirs[name]() * scale)
                if floors:
                    yield combine(f"lease: {name}", unit, values, floors, target=target, placement=placement)
                else:
                    value = statistics.median(values)
                    yield Row(
                        f"lease: {name}",
                        value,
                        unit,
                        None,
                        None,
                        None,
                        None,
                        placement=placement,
                        note=lacking,
                    )


def lack_of_redis() -> str:
    """Return what is missing for the comparison; nothing when all is there."""
    if importlib.util.find_spec("redis") is None:
        return "no peer: redis-py is not installed; pip install 'dsm[bench]'"
    if shutil.which("redis-server") is None:
        return "no peer: there is no redis-server; apt-get install redis-server"
    return ""


@contextlib.contextmanager
def _placed(cpus: set[int] | None) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on some processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def serving(size: str = "512M") -> Iterator[str]:
    """Run ``dsm serve`` on a free port of loopback; gives its address."""
    environment = {key: value for key, value in os.environ.items() if key != "DSM_NODE"}
    server = subprocess.Popen(
        [sys.executable, "-m", "dsm", "serve", "--listen", "127.0.0.1:0", "--size", size, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert server.stdout is not None
        import msgspec

        yield str(msgspec.json.decode(server.stdout.readline())["address"])
    finally:
        server.terminate()
        server.wait(_START_S)


@contextlib.contextmanager
def _our_side() -> Iterator[Side]:
    import dsm

    with serving() as address, dsm.connect(address) as client:
        small, large = client.lease(_SMALL, 3600), client.lease(_LARGE, 3600)
        many = [client.lease(_SMALL, 3600) for _ in range(_BATCH)]
        data, bulk = bytes(range(256)) * (_SMALL // 256), bytes(_LARGE)

        def get_many() -> None:
            with client.pipeline() as batch:
                got = [batch.get(lease) for lease in many]
            _check(got[-1].result(), data)

        def set_many() -> None:
            with client.pipeline() as batch:
                for lease in many:
                    batch.set(lease, data)

        small.set(data)
        set_many()
        yield _side(
            small.get, lambda: small.set(data), get_many, set_many, large.get, lambda: large.set(bulk)
        )


@contextlib.contextmanager
def _redis_side() -> Iterator[Side]:
    redis: Any = importlib.import_module("redis")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    try:
        _until_it_answers(client.ping, redis.ConnectionError)
        data, bulk = bytes(range(256)) * (_SMALL // 256), bytes(_LARGE)

        def get_many() -> None:
            batch = client.pipeline(transaction=False)
            for number in range(_BATCH):
                batch.get(f"key {number}")
            _check(batch.execute()[-1], data)

        def set_many() -> None:
            batch = client.pipeline(transaction=False)
            for number in range(_BATCH):
                batch.set(f"key {number}", data)
            batch.execute()

        client.set("small", data)
        set_many()
        client.set("large", bulk)
        yield _side(
            lambda: client.get("small"),
            lambda: client.set("small", data),
            get_many,
            set_many,
            lambda: client.get("large"),
            lambda: client.set("large", bulk),
        )
    finally:
        client.close()
        server.terminate()
        server.wait(_START_S)


def _check(found: Any, expected: bytes) -> None:
    if bytes(found) != expected:
        raise AssertionError("what was read is not what was written")


def _until_it_answers(ask: Callable[[], object], refused: type[Exception]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            ask()
            return
        except refused:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _side(
    get: Callable[[], object],
    put: Callable[[], object],
    get_many: Callable[[], object],
    put_many: Callable[[], object],
    get_large: Callable[[], object],
    put_large: Callable[[], object],
) -> Side:
    return {
        "get 4 KiB": lambda: _median(get, _SINGLES),
        "set 4 KiB": lambda: _median(put, _SINGLES),
        f"get 4 KiB, {_BATCH} pipelined, each": lambda: _median(get_many, _BATCHES) / _BATCH,
        f"set 4 KiB, {_BATCH} pipelined, each": lambda: _median(put_many, _BATCHES) / _BATCH,
        "get 64 MiB": lambda: _median(get_large, _LARGES),
        "set 64 MiB": lambda: _median(put_large, _LARGES),
    }


def _median(operation: Callable[[], object], count: int) -> float:
    """Return the median seconds of an operation."""
    clock = time.perf_counter
    samples = []
    for _ in range(count):
        began = clock()
        operation()
        samples.append(clock() - began)
    return statistics.median(samples)
