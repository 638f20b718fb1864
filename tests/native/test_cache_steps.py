"""A worker is killed at any instruction of its cache in C: at most one object is lost, none is there twice.

The same as `tests/memory/test_cache_death.py` for what the compiler has made of cache.c: `steps.c` runs
operations one instruction at a time and says each store into the buffer.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from dsm import _native
from dsm.memory.cache import (
    ALLOCATIONS,
    ASKED,
    CACHE_BYTES,
    FREES,
    GIVEN,
    OUTBOX,
    WORDS,
    WorkerCache,
    contents,
)
from dsm.memory.classes import BATCHES, CAPACITIES, CLASSES, MAX_BATCH, MAX_SMALL_BYTES, SIZES, class_of

HERE = Path(__file__).parent
NATIVE = Path(_native.__file__).parent
#: What `steps` ends with where nobody may trace.
MAY_NOT = 14
CLS = class_of(16 * 1024)
OTHER = class_of(12 * 1024)
BY_STEP = bytes(class_of(16 * step) for step in range(MAX_SMALL_BYTES // 16 + 1))


@pytest.fixture(scope="module", params=["-O0", "-O2"])
def program(request, tmp_path_factory):
    if platform.machine() != "x86_64":
        pytest.skip("elsewhere an atomic exchange may be a loop that no single step leaves")
    built = tmp_path_factory.mktemp("steps") / "steps"
    flags = ["-std=c11", request.param, "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{NATIVE}"]
    flags.append("-Wl,-z,now")  # no step is spent on finding functions
    subprocess.run(["gcc", *flags, HERE / "steps.c", NATIVE / "cache.c", "-o", built], check=True)
    return built


class _Author:
    """Writes the script of a life: the cache in Python says which address an operation has."""

    def __init__(self):
        self.cache = WorkerCache(memoryview(bytearray(CACHE_BYTES)).cast("Q"))
        self.lines = []
        self.batches = 0
        self.next = 4096

    def _write(self, name, *arguments):
        self.lines.append(f"{name} {len(arguments)} {' '.join(map(str, arguments))}")

    def allocate(self, cls, nbytes):
        self._write("take", nbytes)
        address = self.cache.take(cls, nbytes)
        if address:
            return address
        self.batches += 1
        batch = [self.next + 16 * at for at in range(BATCHES[cls])]
        self.next += 16 * len(batch)
        assert self.cache.fill(cls, batch, self.batches)
        self._write("fill", cls, self.batches, len(batch), *batch)
        return self.allocate(cls, nbytes)

    def free(self, cls, address, nbytes):
        self._write("put", address, nbytes, cls)
        if not self.cache.put(cls, address, nbytes):
            number, _ = self.cache.surplus(cls)
            self.cache.sent()
            self._write("surplus", cls, OUTBOX)
            self._write("sent", number)
            self.free(cls, address, nbytes)

    def live(self):
        """Every path: filling, emptying, a surplus, reuse of the outbox, two classes."""
        sizes = {CLS: SIZES[CLS] - 5, OTHER: SIZES[OTHER]}
        objects = [(CLS, self.allocate(CLS, sizes[CLS])) for _ in range(2 * CAPACITIES[CLS] + 1)]
        objects += [(OTHER, self.allocate(OTHER, sizes[OTHER])) for _ in range(BATCHES[OTHER] + 1)]
        for cls, address in objects:
            self.free(cls, address, sizes[cls])
        for cls in (CLS, OTHER, CLS) * 4:
            self.free(cls, self.allocate(cls, sizes[cls]), sizes[cls])
        preamble = [len(BY_STEP), CLASSES, MAX_BATCH, *BY_STEP, *CAPACITIES, *BATCHES]
        return "\n".join([" ".join(map(str, preamble)), *self.lines])


class _Witness:
    """Has what worker, manager and program know, and looks at the buffer as after a death there."""

    def __init__(self):
        self.words = memoryview(bytearray(CACHE_BYTES)).cast("Q")
        WorkerCache(self.words)
        #: Objects that the program has, that are the pool's, and all.
        self.held, self.pool, self.all = set(), set(), set()
        self.sent, self.received = {}, 0
        #: By counter: the least and the most that it may be.
        self.least, self.most = [0] * 4, [0] * 4
        self.leaving = None
        self.deaths = self.losses = 0

    def look(self):
        self.deaths += 1
        found = contents(self.words, self.sent, self.received)
        assert len(set(found)) == len(found)
        assert not self.held & set(found), "what the program has is not given to another"
        assert not self.pool & set(found), "what the pool has is not given to it again"
        assert self.all >= set(found)
        lost = self.all - self.held - self.pool - set(found)
        assert len(lost) <= 1
        self.losses += len(lost)
        for at, counter in enumerate((ALLOCATIONS, FREES, ASKED, GIVEN)):
            assert self.least[at] <= self.words[counter] <= self.most[at]

    def begin(self, name, *arguments):
        if name == "take":
            self.most[0] += 1
            self.most[2] += arguments[0]
        elif name == "put":
            self.held.discard(arguments[0])  # the program has no right to it any more
            self.most[1] += 1
            self.most[3] += arguments[1]
        elif name == "fill":
            self.all.update(arguments[3:])
            self.sent[arguments[1]] = arguments[3:]
        elif name == "sent":
            self.received = arguments[0]  # the manager has got it
            self.pool.update(self.leaving)
        self.look()

    def end(self, name, arguments, results):
        if name == "take" and results[0]:
            assert results[0] not in self.held
            self.held.add(results[0])
            self.least[0], self.least[2] = self.most[0], self.most[2]
        elif name == "take":
            self.most[0], self.most[2] = self.least[0], self.least[2]
        elif name == "put" and results[0]:
            self.least[1], self.least[3] = self.most[1], self.most[3]
        elif name == "put":
            self.held.add(arguments[0])
            self.most[1], self.most[3] = self.least[1], self.least[3]
        elif name == "surplus":
            self.leaving = results
        self.look()


def test_death_at_each_instruction_loses_at_most_one_object(program):
    fd = os.memfd_create("test-cache")
    try:
        os.write(fd, bytes(CACHE_BYTES))
        witness = _Witness()
        os.pwrite(fd, witness.words.tobytes(), 0)
        ran = subprocess.run(
            [program, str(fd), str(WORDS)],
            input=_Author().live(),
            capture_output=True,
            text=True,
            timeout=60,
            pass_fds=(fd,),
        )
    finally:
        os.close(fd)
    if ran.returncode == MAY_NOT:
        pytest.skip("this process may trace no other")
    assert ran.returncode == 0, ran.stderr
    operations = stores = instructions = 0
    name, arguments = "", []
    for line in ran.stdout.splitlines():
        word, *rest = line.split()
        if word == "begin":
            name, arguments = rest[0], [int(text) for text in rest[1:]]
            witness.begin(name, *arguments)
            operations += 1
        elif word == "store":
            _, index, value = map(int, rest)
            witness.words[index] = value
            witness.look()
            stores += 1
        else:
            instructions += int(rest[0])
            witness.end(name, arguments, [int(text) for text in rest[1:]])
    assert stores > 2 * operations > 50 and instructions > 20 * operations
    assert not witness.held, "the program has freed everything"
    assert witness.losses, "some deaths were between two stores"
