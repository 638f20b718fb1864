"""A signal handler comes at every step of every call of a heap, and raises there, or uses the heap itself.

CPython runs a handler where a function begins, where a call ends, and where a loop jumps back.  A profile
function stands for it at the first two in all of dsm, a trace function at each line of the heap's own files.
The call is made again and again; each time the handler comes one step later, until no step is left.
Whatever it does there, no two live blocks share an address, no block changes its bytes, what nobody freed is
refused to nobody, and a call that was broken off loses no more than the blocks that it was about.
"""

from __future__ import annotations

import time

import pytest

import heap_programs as programs
from dsm.errors import UsageError
from dsm.testing import Cluster
from dsm.worker import block, direct, freeing, guarded, heap, heapcache, resizing
from steps import Handler

#: Where the handler comes at each line, too.
MODULES = (block, direct, freeing, guarded, heap, heapcache, resizing)
LINES = {module.__name__ for module in MODULES} | {"dsm._native.caches"}
#: Blocks that a call is about: `realloc` has two.
MAY_LOSE = 2
#: A class with small batches, of which a few blocks go through all of a cache; and what comes from the pool.
SMALL, LARGE = 70_000, 300_000

pytestmark = pytest.mark.usefixtures("patient")


class _Interrupt(Exception):
    """What the handler raises."""


class _Program:
    """A heap, and what a program has of it: it knows which bytes it wrote into which block."""

    def __init__(self, node, name, refs):
        self.heap = node.heap(name)
        self.held = {}
        #: Blocks of another node, to be freed here.
        self.far = [ref.block() for ref in refs]
        self.lost = self.tags = 0

    def keep(self, made):
        """The program has a block, and it alone."""
        assert all(other.address != made.address for other in self.held), "two live blocks have one address"
        self.tags += 1
        array = made.array(dtype="u8")
        array[0] = array[-1] = self.held[made] = self.tags
        return made

    def look(self, held):
        array = held.array(dtype="u8")
        assert array[0] == array[-1] == self.held[held], "nobody else writes into it"

    def alloc(self, size=SMALL, **more):
        return self.keep(self.heap.alloc(size, zero=False, **more))

    def free(self, held):
        self.look(held)
        del self.held[held]
        self.heap.free(held)

    # -- calls: each prepares what it needs, and returns what the handler comes into ----------------------

    def allocate(self):
        """From the pool, from the cache, from the pool."""
        self.heap.trim()
        return lambda: [self.alloc() for _ in range(3)]

    def give_back(self):
        """Into a cache that is full."""
        blocks = [self.alloc() for _ in range(9)]
        for each in blocks[3:]:
            self.free(each)
        return lambda: [self.free(each) for each in blocks[:3]]

    def large(self):
        return lambda: self.free(self.alloc(LARGE))

    def far_home(self):
        """Of another node, one at a time, and the last together with others."""
        blocks = [self.keep(self.far.pop()) for _ in range(3)]
        return lambda: [self.free(each) for each in blocks]

    def resize(self):
        """Where it is, and to another place."""
        held = self.alloc()
        return lambda: self.free(self.resized(self.resized(held, SMALL + 100), 2 * SMALL))

    def resized(self, held, size):
        self.look(held)
        tag = self.held.pop(held)
        moved = self.heap.realloc(held, size)
        array = moved.array(dtype="u8")
        assert array[0] == tag
        return self.keep(moved)

    def direct(self):
        return lambda: self.free(self.alloc(manager="direct"))

    def arrays(self):
        def go():
            array = self.heap.array(SMALL // 8)
            assert not array.any()
            self.heap.free(array)

        return go

    # -- the handler -------------------------------------------------------------------------------------

    def use(self):
        """Take so many blocks that batches come, and give so many back that batches leave."""
        blocks = [self.alloc() for _ in range(7)]
        for each in blocks:
            self.free(each)
        if self.far:
            self.heap.free(self.far.pop())

    # -- afterwards --------------------------------------------------------------------------------------

    def settle(self, broken):
        """Look at every block, and return how many more are lost."""
        for each in list(self.held):
            if each.freed:
                assert broken, "nobody freed it"
                del self.held[each]
            else:
                self.look(each)
        self.heap.statistics()  # when it has its answer, what undoes a call that was broken off is on its way
        more, end = -1, time.monotonic() + 10
        while not 0 <= more <= MAY_LOSE * broken:  # the region of a direct block ends a little later
            more = self.heap.statistics().in_use - len(self.held) - len(self.far) - self.lost
            assert time.monotonic() < end, f"{more} blocks are lost"
        self.lost += more
        return more


def _at_every_step(node, name, refs, call, action):
    """Interrupt a call at each of its steps; return how many these are, and the blocks that are lost."""
    program = _Program(node, name, refs)

    def handler():
        if action == "use":
            program.use()
        else:
            raise _Interrupt

    at = 0
    while True:
        go = getattr(program, call)()
        at += 1
        come = Handler(at, handler, LINES)
        broken = False
        try:
            with come:
                go()
        except _Interrupt:
            broken = True
        program.settle(broken)
        for each in list(program.held):
            try:
                program.free(each)
            except UsageError:
                assert action == "raise", "nobody freed it"
        if come.left > 0:
            break
    program.use()
    program.heap.check()
    return at, program.lost


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=2) as cluster:
        yield cluster


@pytest.mark.parametrize("action", ["raise", "use"])
@pytest.mark.parametrize("call", ["allocate", "give_back", "large", "far_home", "resize", "direct", "arrays"])
def test_at_every_step(cluster, call, action):
    name = f"{call} {action}"
    near, far = cluster.workers
    near.call(programs.heap, name, {"manager": "pooled", "min_system_alloc": "4M"})
    refs = far.call(_allocate, name, 1500) if call == "far_home" or action == "use" else []
    steps, lost = near.call(_at_every_step, name, refs, call, action)
    figures = far.call(programs.figures, name)
    assert steps > 20 and figures.refused_frees == 0
    assert lost < steps if action == "raise" else lost == 0
    assert far.call(programs.check, name) is None
    near.call(programs.destroy, name)


@pytest.mark.parametrize("call", ["large", "arrays"])
def test_at_every_step_in_debug_mode(cluster, call):
    near, far = cluster.workers
    near.call(programs.heap, call, {"manager": "pooled", "debug": True})
    steps, lost = near.call(_at_every_step, call, [], call, "raise")
    assert lost < steps > 20
    assert far.call(programs.check, call) is None
    near.call(programs.destroy, call)


def _allocate(node, name, count):
    return [node.heap(name).alloc(64).ref() for _ in range(count)]
