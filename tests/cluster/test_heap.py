"""Heaps on real clusters: blocks cross workers and nodes, and every figure is true afterwards."""

from __future__ import annotations

import contextlib
import random
import signal
import time

import pytest

import heap_programs as programs
from dsm import proc
from dsm.errors import DSMError, InternalError, UnknownNameError, UsageError
from dsm.memory.cache import WORDS
from dsm.memory.classes import CLASSES
from dsm.testing import Cluster
from dsm.testing.cluster import ManagerProcess, Worker
from dsm.types import RegionOptions
from dsm.wire import heaps
from support import wait_until

MIB = 1 << 20
SIZES = [0, 1, 31, 100, 4096, 5000, 65536, 262144, 300000, 3 * MIB]
POOLED = {"manager": "pooled"}

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """The file that stops managers when they get eager memory: those that are started now (see `gated`)."""
    path = tmp_path_factory.mktemp("gate") / "closed"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DSM_TEST_GATE", str(path))
        yield path


@pytest.fixture(scope="module")
def cluster(gate):
    with Cluster(nodes=2, workers=2) as cluster:
        yield cluster


@pytest.fixture
def workers(cluster):
    return cluster.workers


@pytest.mark.parametrize("manager", ["pooled", "direct"])
@pytest.mark.parametrize("kind", ["lazy", "eager"])
def test_blocks_pass_to_other_workers_and_are_freed_there(workers, manager, kind):
    name = f"passing-{manager}-{kind}"
    options = {"kind": kind, "manager": manager}
    refs = workers[0].call(programs.allocate, name, SIZES, 7, options)
    for other in workers[1:]:
        assert other.call(programs.read, refs) == [b"\7" * size for size in SIZES]
    before = workers[1].call(programs.figures, name)
    assert (before.in_use, before.allocated) == (len(SIZES), sum(SIZES))
    assert before.used >= before.allocated
    workers[1].call(programs.free, refs[::2])
    workers[3].call(programs.free, refs[1::2])
    after = workers[2].call(programs.figures, name)
    assert (after.in_use, after.used, after.allocated) == (0, 0, 0)
    assert after.managed == after.cached + after.spare + after.free
    assert (after.allocations, after.frees) == (len(SIZES), len(SIZES))
    assert workers[3].call(programs.check, name) is None
    workers[3].call(programs.destroy, name)


def test_memory_that_was_used_before_is_zero_again(workers):
    for size in (100, 5000, 65536, 3 * MIB):
        refs = workers[0].call(programs.allocate, "zeros", [size] * 5, 255, POOLED)
        workers[2].call(programs.read, refs)
        workers[1].call(programs.free, refs)
        again = workers[1].call(programs.allocate, "zeros", [size] * 5)  # asserts that they are zero
        workers[1].call(programs.free, again)


@pytest.mark.parametrize("size", [16, 64, 1000, 65536])
def test_small_blocks_cost_no_message(workers, size):
    assert workers[0].call(programs.steady, "steady", size, 5000) == 0
    figures = workers[0].call(programs.figures, "steady")
    assert figures.in_use == 0


def test_blocks_that_one_worker_allocates_and_another_frees_travel_in_batches(workers):
    rounds, size = 40, 512
    workers[0].call(programs.allocate, "batches", [], None, POOLED)
    workers[2].call(programs.allocate, "batches", [])
    before = workers[2].call(programs.requests_of)
    for _ in range(rounds):
        refs = workers[0].call(programs.allocate, "batches", [size] * 16)
        workers[2].call(programs.free, refs)
    sent = workers[2].call(programs.requests_of) - before - 1
    assert sent <= rounds * 16 / 32 + 2  # one for 32 blocks, and the extent that it mapped
    figures = workers[3].call(programs.figures, "batches")
    assert (figures.in_use, figures.refused_frees) == (0, 0)
    assert figures.pools[0].extents == 1


def test_a_pool_grows_and_gives_empty_extents_back(workers):
    options = {**POOLED, "min_system_alloc": "1M"}
    refs = workers[0].call(programs.allocate, "growing", [200_000] * 40, 1, options)
    grown = workers[0].call(programs.figures, "growing")
    assert grown.managed >= 8 * MIB and grown.pools[0].extents >= 8
    workers[0].call(programs.free, refs)
    workers[0].call(programs.trim, "growing")
    figures = workers[0].call(programs.figures, "growing")
    assert (figures.managed, figures.in_use) == (0, 0)
    assert figures.peak >= 8_000_000
    refs = workers[0].call(programs.allocate, "growing", [200_000] * 40, 1)
    workers[1].call(programs.free, refs)
    assert workers[0].call(programs.check, "growing") is None


def test_figures_are_true(workers):
    options = {**POOLED, "min_system_alloc": "4M"}
    refs = workers[0].call(programs.allocate, "true", [1000] * 100, 1, options)
    refs += workers[2].call(programs.allocate, "true", [MIB], 1)
    figures = workers[1].call(programs.figures, "true")
    assert figures.allocated == 100_000 + MIB
    assert figures.used == 100 * 1024 + MIB  # the class above 1000 has 1024 bytes
    assert figures.in_use == 101
    assert figures.internal_fragmentation == pytest.approx(1 - figures.allocated / figures.used)
    assert [pool.node for pool in figures.pools] == [0, 1]
    for pool in figures.pools:
        assert pool.managed == pool.used + pool.cached + pool.spare + pool.free == 4 * MIB
        assert 0 < pool.largest_free <= pool.free
        assert pool.external_fragmentation == pytest.approx(1 - pool.largest_free / pool.free)
    assert figures.pools[1].used == MIB
    workers[3].call(programs.free, refs)
    assert workers[3].call(programs.figures, "true").used == 0


def test_a_heap_that_is_destroyed_is_gone_for_all(workers):
    for manager in ("pooled", "direct"):
        refs = workers[0].call(programs.allocate, "ending", [100, MIB], 1, {"manager": manager})
        assert workers[2].call(programs.use, refs[1]) == MIB
        workers[2].call(programs.destroy, "ending")
        for worker in workers:
            assert worker.call(programs.use, refs[1]) in ("ClosedError", "UnknownNameError")
        # The name is free, and blocks of the new one are not mistaken for old ones.
        refs = workers[1].call(programs.allocate, "ending", [100], 2, {"manager": manager})
        assert workers[3].call(programs.read, refs) == [b"\2" * 100]
        workers[3].call(programs.destroy, "ending")


def _destroy_twice(node):
    heap = node.heap("twice", manager="pooled")
    block = heap.alloc(100)
    heap.destroy()
    return [_error(heap.destroy), _error(heap.alloc, 10), _error(heap.free, block), _error(heap.statistics)]


def _error(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_a_heap_that_was_destroyed_refuses_everything(workers):
    for said in workers[0].call(_destroy_twice):
        assert said.startswith("ClosedError: heap 'twice' is closed: it was destroyed; open it again with")


def _stale(node):
    """Use a heap that another worker has destroyed."""
    heap = node.stale
    return [_error(heap.alloc, MIB), _error(heap.alloc, 10), _error(heap.check)]


def _keep(node, name):
    node.stale = node.heap(name, manager="pooled")
    node.stale.alloc(10)


def test_a_heap_that_another_worker_destroyed_says_so(workers):
    workers[0].call(_keep, "stale")
    workers[2].call(programs.destroy, "stale")
    assert all(said.startswith("ClosedError") for said in workers[0].call(_stale))


def test_the_same_name_with_other_options_is_refused(workers):
    workers[0].call(programs.heap, "options", {"manager": "pooled", "max_bytes": "64M"})
    assert workers[2].call(programs.heap, "options").max_bytes == 64 * MIB
    assert workers[2].call(programs.heap, "options", {"manager": "pooled"}).kind == "lazy"
    with pytest.raises(Exception, match=r'heap "options" exists with other options: max_bytes is 67108864, '):
        workers[3].call(programs.heap, "options", {"max_bytes": "32M", "manager": "pooled"})


def test_a_bound_holds_over_all_nodes(workers):
    options = {**POOLED, "max_bytes": "6M", "min_system_alloc": "4M"}
    first = workers[0].call(programs.allocate, "bound", [3 * MIB], 1, options)
    second = workers[2].call(programs.allocate, "bound", [MIB], 1)  # of the 2 MiB that are left
    with pytest.raises(Exception, match="which has") as caught:
        workers[2].call(programs.allocate, "bound", [3 * MIB])
    assert type(caught.value).__name__ == "FullError"
    with pytest.raises(Exception, match="would not fit if it were empty") as caught:
        workers[2].call(programs.allocate, "bound", [7 * MIB])
    assert type(caught.value).__name__ == "TooLargeError"
    # What one node gives back, another one gets: also the extent that it keeps for later.
    workers[1].call(programs.free, first)
    refs = workers[2].call(programs.allocate, "bound", [3 * MIB], 1)
    workers[3].call(programs.free, refs + second)
    assert workers[0].call(programs.check, "bound") is None


@pytest.mark.parametrize("pages", [1, 2, 5, 16])
@pytest.mark.parametrize("manager", ["pooled", "direct"])
def test_a_small_heap_holds_what_its_bound_allows(workers, manager, pages):
    """Not only what has room beside others of its class."""
    name, bound = f"small {manager} {pages}", pages * 4096
    options = {"manager": manager, "max_bytes": bound}
    for size in (1, 100, bound // 2, bound - 1, bound):
        refs = workers[0].call(programs.allocate, name, [size], 1, options)
        assert workers[0].call(programs.figures, name).managed <= bound
        workers[0].call(programs.free, refs)
        workers[0].call(programs.trim, name)
    workers[0].call(programs.destroy, name)


def test_a_bound_of_direct_blocks(workers):
    options = {"manager": "direct", "max_bytes": "64K"}
    refs = workers[0].call(programs.allocate, "direct-bound", [30_000, 20_000], 1, options)
    with pytest.raises(Exception, match="heap 'direct-bound'") as caught:
        workers[2].call(programs.allocate, "direct-bound", [20_000])
    assert type(caught.value).__name__ == "FullError"
    workers[2].call(programs.free, refs)
    refs = workers[2].call(programs.allocate, "direct-bound", [60_000])
    assert workers[2].call(programs.figures, "direct-bound").direct_bytes == 61_440
    workers[0].call(programs.free, refs)


def test_a_direct_block_that_is_freed_raises_when_it_is_used(workers):
    (ref,) = workers[0].call(programs.allocate, "pages", [10_000], 1, {"manager": "direct"})
    assert workers[2].call(programs.use, ref) == 10_000
    workers[0].call(programs.free, [ref])
    assert workers[2].call(programs.use, ref) == "ClosedError"
    assert workers[2].call(programs.free_again, [ref])[0] == "UsageError"


def _lazily(node):
    heap = node.heap("lazily", manager="direct")
    before = programs.requests_of(node)
    blocks = [heap.alloc(1000) for _ in range(10)]
    made = programs.requests_of(node) - before - 1
    figures = heap.statistics()
    blocks[0].array()[:] = 1
    used = heap.statistics()
    for block in blocks:
        block.free()
    return made, figures.direct, used.direct, heap.statistics().direct


def _maps(node, name):
    """Return how many maps this process has, and how many blocks it can use."""
    return len(list(proc.mappings())), len(node.heap(name)._live)


def test_direct_blocks_that_others_free_leave_no_maps_behind(workers):
    first, second, third = workers[0], workers[1], workers[2]
    options = {"manager": "direct"}
    (kept,) = first.call(programs.allocate, "passing on", [5000], 9, options)
    most = []
    for _ in range(8):
        refs = first.call(programs.allocate, "passing on", [5000] * 64, 1)
        assert second.call(programs.read, refs[::8]) == [b"\1" * 5000] * 8
        third.call(programs.free, refs)
        most.append([worker.call(_maps, "passing on") for worker in (first, second, third)])
    for counted in zip(*most, strict=True):
        assert max(live for _, live in counted) < 256 + 64
        assert max(maps for maps, _ in counted) < 1600, "512 regions would be 2048 maps"
    assert first.call(programs.read, [kept]) == [b"\x09" * 5000]
    assert first.call(programs.figures, "passing on").in_use == 1
    first.call(programs.destroy, "passing on")


def _made(node, name):
    """Make direct blocks and keep them; return references."""
    heap = node.heap(name, manager="direct")
    node.kept = [heap.alloc(5000) for _ in range(20)]
    return [block.ref() for block in node.kept]


def _free_kept(node):
    """Free what another process has freed; return how many maps are fewer then."""
    before = len(list(proc.mappings()))
    for block in node.kept:
        with pytest.raises(UsageError, match="by another process already"):
            block.free()
    return before - len(list(proc.mappings()))


def test_a_direct_block_that_is_freed_twice_leaves_no_maps_behind(workers):
    first, second = workers[:2]
    second.call(programs.free, first.call(_made, "twice"))
    assert first.call(_free_kept) >= 20
    first.call(programs.destroy, "twice")


def test_a_lazy_block_is_made_at_its_first_use(workers):
    assert workers[0].call(_lazily) == (0, 0, 1, 0)


def _large_frees(node, refs):
    """Free large blocks of another node: at once, and errors are told."""
    return programs.free_again(node, [*refs, refs[0]])


def test_a_large_block_that_another_process_freed_is_told(workers):
    refs = workers[0].call(programs.allocate, "large", [MIB], None, POOLED)
    workers[0].call(programs.free, refs)
    kind, said = workers[2].call(programs.free_again, refs)
    assert kind == "UsageError" and "is no block" in said


def _allocate_at(node, name, size, address):
    """Return a reference to a block at an address, which is free there."""
    heap = node.heap(name)
    blocks = []
    while not blocks or blocks[-1].address != address:
        assert len(blocks) < 10_000
        blocks.append(heap.alloc(size))
    for block in blocks[:-1]:
        block.free()
    return blocks[-1].ref()


def _kept(node, name, size):
    node.kept = node.heap(name).alloc(size)
    return node.kept.ref()


def _opened(node, ref):
    block = ref.block()
    return block.nbytes, block.usable_size, block.array().size, block is node.kept


@pytest.mark.parametrize(
    ("sizes", "same"), [((100, 112), True), ((100, 97), True), ((300_000, 16_384), False)]
)
def test_a_handle_of_a_block_that_another_process_freed_gives_way_to_the_next_block(workers, sizes, same):
    name = f"wandering {sizes}"
    before, after = sizes
    first, second = workers[:2]
    held = first.call(programs.allocate, name, [100_000], None, {**POOLED, "min_system_alloc": "1M"})
    old = first.call(_kept, name, before)
    second.call(programs.free, [old])
    second.call(programs.trim, name)
    new = second.call(_allocate_at, name, after, old.address)
    nbytes, usable, items, reused = first.call(_opened, new)
    assert (nbytes, items) == (after, after) and after <= usable < after + 16
    assert reused == same
    first.call(programs.free, [new, *held])
    figures = first.call(programs.figures, name)
    assert (figures.in_use, figures.allocated) == (0, 0)
    first.call(programs.destroy, name)


def _free_the_old_one(node, name, old):
    heap = node.heap(name)
    block = heap.alloc(100)
    while block.address != old.address:
        block = heap.alloc(100)
    with pytest.raises(UsageError, match="double free"):
        node.kept.free()
    block.array()[:] = 5
    block.free()
    return block.freed


def test_a_handle_of_a_block_that_another_process_freed_does_not_harm_the_next_block(workers):
    first, second = workers[:2]
    first.call(programs.allocate, "harmless", [], None, POOLED)
    old = first.call(_kept, "harmless", 100)
    second.call(programs.free, [old])
    second.call(programs.trim, "harmless")
    assert first.call(_free_the_old_one, "harmless", old)
    assert first.call(programs.check, "harmless") is None
    first.call(programs.destroy, "harmless")


def test_a_small_block_that_two_processes_free_is_counted(workers):
    refs = workers[0].call(programs.allocate, "counted", [100] * 40, None, POOLED)
    workers[2].call(programs.free, refs)
    workers[2].call(programs.figures, "counted")
    workers[3].call(programs.free, refs)
    figures = workers[0].call(programs.figures, "counted")
    assert (figures.refused_frees, figures.in_use) == (40, 0)


def test_a_worker_that_dies_gives_its_cache_back():
    with Cluster(nodes=2, workers=2) as cluster:
        mine, dying, far, other = cluster.workers
        refs = mine.call(programs.allocate, "dying", [1000] * 20, 1, POOLED)
        kept = dying.call(programs.allocate, "dying", [100, 1000, 5000, 65536, MIB], 2)
        dying.call(programs.free, refs)
        far_refs = other.call(programs.allocate, "dying", [300] * 7)
        dying.call(programs.free, far_refs)  # too few for a batch: they wait in its ring
        before = mine.call(programs.figures, "dying")
        assert before.in_use == 5 and before.pools[0].cached > 0
        dying.kill()
        wait_until(lambda: dying.process.poll() is not None)
        wait_until(lambda: _cached(mine) < before.pools[0].cached)
        after = mine.call(programs.figures, "dying")
        assert after.in_use == 5 and after.pools[0].used == before.pools[0].used
        assert mine.call(programs.read, kept)[0] == b"\2" * 100
        mine.call(programs.free, kept)
        for worker in (mine, far):
            worker.call(programs.trim, "dying")
        # Nothing is left but what the far worker may keep in its cache.
        ended = mine.call(programs.figures, "dying")
        assert (ended.in_use, ended.used, ended.pools[0].managed) == (0, 0, 0)
        assert mine.call(programs.check, "dying") is None


def _cached(worker):
    return worker.call(programs.figures, "dying").pools[0].cached


def test_the_blocks_of_a_lost_node_are_lost_and_their_bytes_free():
    options = {**POOLED, "max_bytes": "8M", "min_system_alloc": "4M"}
    with Cluster(nodes=3) as cluster:
        first, second, third = cluster.workers
        refs = third.call(programs.allocate, "lost", [100] * 40 + [MIB], 1, options)
        mine = first.call(programs.allocate, "lost", [100], 3)
        second.call(programs.allocate, "lost", [])
        cluster.managers[2].process.kill()
        wait_until(lambda: first.call(_nodes) == (0, 1) == second.call(_nodes))
        assert first.call(programs.use, refs[0]) == "PageLostError"
        second.call(programs.free, refs)
        figures = first.call(programs.figures, "lost")
        assert (figures.lost_frees, figures.in_use, figures.silent) == (41, 1, ())
        assert second.call(programs.read, mine) == [b"\3" * 100]
        # What the dead node had counts no more.
        refs = second.call(programs.allocate, "lost", [3 * MIB], 1)
        first.call(programs.free, refs + mine)
        assert first.call(programs.check, "lost") is None


def _make(node, name, sizes, manager):
    heap = node.heap(name)
    blocks = [heap.alloc(size, manager=manager) for size in sizes]
    return [block.ref() for block in blocks]


def _resize(node, refs, sizes):
    heap = refs[0].block().heap
    return [heap.realloc(ref.block(), size).ref() for ref, size in zip(refs, sizes, strict=True)]


def test_what_was_asked_for_is_counted_where_it_is():
    sizes = [1, 100, 5000, 262144, 300_000, 3 * MIB]
    with Cluster(nodes=3) as cluster:
        first, second, third = cluster.workers
        refs = [each.call(programs.allocate, "asked", sizes, None, POOLED) for each in cluster.workers]
        direct = [each.call(_make, "asked", [100, 5000], "direct") for each in cluster.workers]
        # Every node frees and resizes blocks of the others.
        first.call(programs.free, [refs[1].pop(0), refs[2].pop(0)])
        second.call(programs.free, [refs[0].pop(), refs[2].pop(), direct[0].pop(0)])
        third.call(programs.free, refs[1][-2:])
        del refs[1][-2:]
        shorter = [1, 90, 4000, 1000, 2]
        refs[0] = second.call(_resize, refs[0], shorter)
        direct[2] = first.call(_resize, direct[2], [200, 4000])
        asked = [sum(shorter), sum(sizes[1:4]), sum(sizes[1:5])]
        figures = first.call(programs.figures, "asked")
        assert figures.allocated == sum(asked) + 5000 + 5100 + 4200
        assert figures.in_use == 5 + 3 + 4 + 1 + 2 + 2
        cluster.managers[1].process.kill()
        wait_until(lambda: first.call(_nodes) == (0, 2) == third.call(_nodes))
        figures = third.call(programs.figures, "asked")
        # Direct blocks of the dead node are there until they are freed, and nobody knows what was asked for.
        assert (figures.in_use, figures.direct) == (5 + 4 + 1 + 2 + 2, 5)
        assert figures.allocated == asked[0] + asked[2] + 5000 + 3 * 4096 + 4200
        for left in (refs[0], refs[2], *direct):
            first.call(programs.free, left)
        figures = third.call(programs.figures, "asked")
        assert (figures.in_use, figures.used, figures.allocated) == (0, 0, 0)


def _nodes(node):
    return node.nodes


def _release_far(node, ref, value):
    """Under release consistency: read a block, write it, free it; what was written must not come later."""
    node.acquire()
    block = ref.block()
    seen = int(block.array()[0])
    block.array()[:] = value
    block.free()
    return seen


def _allocate_released(node, name, value):
    heap = node.heap(name, manager="pooled", consistency="release")
    block = heap.alloc(5000)
    assert not block.array().any()
    block.array()[:] = value
    node.release()
    return block.ref()


def test_release_consistency(workers):
    for turn in range(1, 30):
        ref = workers[0].call(_allocate_released, "released", turn)
        assert workers[2].call(_release_far, ref, 200) == turn
        workers[0].call(programs.figures, "released")  # it is home
    figures = workers[0].call(programs.figures, "released")
    assert (figures.in_use, figures.refused_frees) == (0, 0)
    assert workers[0].call(programs.check, "released") is None


def _extent(node):
    return node._regions.create(RegionOptions(100_000, home=node.node_id, use="extent"))[0].number


def _is_there(node, number):
    try:
        node._regions.open(number)
    except UnknownNameError:
        return False
    return True


def test_an_extent_of_no_heap_ends_with_its_worker():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        number = second.call(_extent)
        assert first.call(_is_there, number)
        second.kill()
        wait_until(lambda: not first.call(_is_there, number))


def _churn(node, name, seed, rounds):
    """Allocate, write, verify and free at random; free what others have sent; return what is left."""
    rng = random.Random(seed)
    heap = node.heap(name, manager="pooled", min_system_alloc="1M")
    mine = getattr(node, "churned", {})
    for _ in range(rounds):
        if mine and rng.random() < 0.5:
            address = rng.choice(list(mine))
            ref, value = mine.pop(address)
            block = ref.block()
            assert (block.array() == value).all()
            block.free()
        else:
            block = heap.alloc(rng.choice((10, 100, 1000, 9000, 70_000, 300_000)))
            assert not block.array().any()
            value = rng.randrange(1, 256)
            block.array()[:] = value
            mine[block.address] = (block.ref(), value)
    handed = dict(list(mine.items())[: len(mine) // 2])
    node.churned = {address: mine[address] for address in mine.keys() - handed.keys()}
    return handed


def _take_over(node, handed):
    node.churned = getattr(node, "churned", {}) | handed


def _let_go(node):
    for ref, value in node.churned.values():
        block = ref.block()
        assert (block.array() == value).all()
        block.free()
    node.churned = {}


def test_blocks_wander_among_all_workers(workers):
    for turn in range(6):
        handed = [worker.start(_churn, "churn", 10 * turn + at, 60) for at, worker in enumerate(workers)]
        handed = [each.result() for each in handed]
        for at, worker in enumerate(workers):
            worker.call(_take_over, handed[at - 1 - turn % 3])
        assert workers[turn % 4].call(programs.check, "churn") is None
    for worker in workers:
        worker.call(_let_go)
    figures = workers[0].call(programs.figures, "churn")
    assert (figures.in_use, figures.used, figures.allocated, figures.refused_frees) == (0, 0, 0, 0)
    for worker in workers:
        worker.call(programs.trim, "churn")
    assert workers[0].call(programs.figures, "churn").managed == 0


def _churn_for_ever(node, name, seed):
    rng = random.Random(seed)
    heap = node.heap(name, manager="pooled")
    live = []
    while True:
        live.append(heap.alloc(rng.choice((10, 100, 1000, 70_000)), zero=False))
        if len(live) > 60:
            for block in rng.sample(live, 50):
                live.remove(block)
                block.free()


def test_kills_leave_no_more_than_the_dead_had():
    """Workers die at any instruction: the heap stays whole; only blocks that they held are still in use."""
    with Cluster(nodes=2, workers=3) as cluster:
        mine = cluster.workers[0]
        mine.call(programs.allocate, "kills", [], None, POOLED)
        dying = [worker for at, worker in enumerate(cluster.workers) if at % 3]
        for at, worker in enumerate(dying):
            worker.start(_churn_for_ever, "kills", at)
        rng = random.Random(3)
        for worker in dying:
            wait_until(lambda: mine.call(programs.figures, "kills").in_use > 0)
            mine.call(programs.steady, "kills", 1000, rng.randrange(2000))
            worker.kill()
        for worker in dying:
            wait_until(lambda worker=worker: worker.process.poll() is not None)

        def settled():
            figures = mine.call(programs.figures, "kills")
            return all(pool.cached == 0 for pool in figures.pools[1:])

        wait_until(settled)
        mine.call(programs.trim, "kills")
        wait_until(lambda: mine.call(programs.check, "kills") is None)
        figures = mine.call(programs.figures, "kills")
        assert figures.in_use <= len(dying) * (61 + 32)
        assert figures.cached == 0
        refs = mine.call(programs.allocate, "kills", [100] * 1000, 1)
        mine.call(programs.free, refs)
        mine.call(programs.destroy, "kills")


def _rebel(node, name):
    """Ask for what cannot be; return what was answered to each."""
    heap = node.heap(name, manager="pooled")
    number, home = heap._record.number, heap._home
    far = 1 - home
    said = []
    huge = (1 << 64) - 1
    for body in (
        heaps.HeapTake(number, 200, 1), heaps.HeapTake(number, -1, 1), heaps.HeapTake(number, 0, 0),
        heaps.HeapTake(number, 0, huge), heaps.HeapTake(999, 0, 1), heaps.HeapAllocate(number, -1),
        heaps.HeapAllocate(number, huge), heaps.HeapAllocate(number, 10, 3),
        heaps.HeapAllocate(number, 10, 0), heaps.HeapAllocate(number, 10, huge),
        heaps.HeapAllocate(number, 1 << 46),
        *(heaps.HeapFree(number, at, address, 5) for at in (home, far) for address in (0, -1, 16, huge)),
        heaps.HeapFree(number, -5, 16, 5), heaps.HeapFree(number, 99, 16, 5),
        *(heaps.HeapGrow(number, node_, 16, size, 5) for node_ in (home, far) for size in (0, -1, huge)),
        heaps.HeapGrow(number, 99, 16, 5, -1), heaps.HeapUnasked(number, 99, 1, 5),
        heaps.HeapFind(number, home, 16), heaps.HeapFind(number, far, 16),
        heaps.DestroyHeap(999), heaps.FindHeap(999), heaps.FindHeap("absent"),
        heaps.OpenHeap(heap.options.__class__("x", "fast", "pooled", 4096, 0, 4096, "sequential", False)),
        heaps.OpenHeap(heap.options.__class__("", "lazy", "pooled", 4096, 0, 4096, "sequential", False)),
    ):  # fmt: skip
        try:
            answer = node._connection.session.call(body, object)[0]
            said.append((body, getattr(answer, "lost", False) or answer))
        except DSMError as error:
            assert not isinstance(error, InternalError), (body, error)
    # What is given back and was never out, and words written over the cache.
    given = node._connection.session.call(heaps.HeapGive(number, 1 << 40, (16, 0, huge)), heaps.HeapGiven)[0]
    assert set(given.refused) == {16, 0, huge}
    heap.alloc(100).free()
    heap._cache._ring.put(63, 4096, 5)
    heap._cache._ring.put(far, 4096, 5)
    heap._cache._ring.put(home, 4096, 5)
    heap.statistics()
    heap._cache._cache.words[0] = huge
    heap._cache._cache.words[WORDS] = 77
    for at in range(CLASSES, CLASSES + 4):
        heap._cache._cache.words[at] = huge
    heap.statistics()
    return said


def test_a_worker_that_talks_nonsense_is_refused():
    with Cluster(nodes=2, workers=2) as cluster:
        good, rebel, far, _ = cluster.workers
        refs = good.call(programs.allocate, "rebels", [100, 5000], 5, POOLED)
        far.call(programs.allocate, "rebels", [100])
        said = rebel.call(_rebel, "rebels")
        lost = [body for body, answer in said if answer is True]
        assert all(isinstance(body, heaps.HeapFree) and body.node in (-5, 99) for body in lost)
        assert len(lost) == len(said) == 2
        rebel.kill()
        wait_until(lambda: rebel.process.poll() is not None)
        assert good.call(programs.read, refs) == [b"\5" * 100, b"\5" * 5000]
        assert good.call(programs.check, "rebels") is None
        good.call(programs.free, refs)
        far.call(programs.destroy, "rebels")
        assert [manager.process.poll() for manager in cluster.managers] == [None, None]


def _destroy_as_an_array(node, name):
    heap = node.heap(name, manager="pooled")
    array = heap.array(100)
    said = [_error(node.destroy, array), _error(heap.alloc(10)._region()[0].destroy)]
    array[:] = 1
    heap.free(array)
    return said


def test_memory_of_a_heap_is_not_destroyed_as_an_array(workers):
    for said in workers[2].call(_destroy_as_an_array, "whole"):
        assert (
            said.startswith("UsageError") and "is memory of heap 'whole', with blocks of others in it" in said
        )
    assert workers[0].call(programs.check, "whole") is None


def _eager_release(node):
    heap = node.heap("eager release", kind="eager", consistency="release", min_system_alloc="1M")
    block = heap.alloc(10_000)
    block.array()[:] = 3
    node.release()
    return block.ref()


def test_eager_memory_under_release_consistency(workers):
    ref = workers[2].call(_eager_release)
    assert workers[0].call(_release_far, ref, 4) == 3
    assert workers[2].call(programs.figures, "eager release").in_use == 0


class _Words:
    """Words of a ring; after the access `at` to one of them it is as if a signal came."""

    def __init__(self, words):
        self.words = words
        self.left = 0
        self.handler = None

    def interrupted(self):
        self.left -= 1
        if self.left == 0:
            self.handler()

    def __getitem__(self, index):
        found = self.words[index]
        self.interrupted()
        return found

    def __setitem__(self, index, word):
        self.words[index] = word
        self.interrupted()


def _free_in_handlers(node, refs):
    """Free blocks in pairs: the second in each between two steps with which the first goes home."""
    blocks = [ref.block() for ref in refs]
    ring = blocks[0]._heap._cache._ring
    ring._words = words = _Words(ring._words)
    at = 0
    while words.left <= 0:
        first, second = blocks.pop(), blocks.pop()
        at += 1
        words.left, words.handler = at, second.free
        first.free()
    words.left = 0
    second.free()
    for block in blocks:
        block.free()


def test_a_signal_handler_frees_at_each_step_of_a_block_on_its_way_home(workers):
    workers[2].call(programs.heap, "handlers", POOLED)
    refs = workers[0].call(programs.allocate, "handlers", [100] * 100, None, POOLED)
    workers[2].call(_free_in_handlers, refs)
    figures = workers[0].call(programs.figures, "handlers")
    assert (figures.in_use, figures.refused_frees, figures.frees) == (0, 0, 100)
    assert workers[0].call(programs.check, "handlers") is None
    workers[0].call(programs.destroy, "handlers")


LARGE = 256 * MIB


def _large(node, name):
    heap = node.heap(name)
    try:
        block = heap.alloc(LARGE)
    except DSMError as error:
        return type(error).__name__
    return heap.statistics().locked, block.ref()


def _eager(worker, name, manager):
    worker.call(programs.heap, name, {"kind": "eager", "manager": manager, "min_system_alloc": "1M"})


@contextlib.contextmanager
def _half_way(gate, cluster):
    """Within, node 0 gets half of a large region's memory, no more; gives what waits for the region."""
    before = _frames(cluster.managers[0])
    gate.touch()
    try:
        yield lambda: wait_until(lambda: _frames(cluster.managers[0]) - before, what="a region")
    finally:
        gate.unlink()


def _frames(manager):
    """Return the regions whose memory a manager has."""
    return {link for link in proc.descriptors(manager.pid) if "dsm-frames" in link}


@pytest.mark.parametrize("manager", ["pooled", "direct"])
def test_others_are_answered_while_eager_memory_is_got(gate, cluster, workers, manager):
    name = f"large-{manager}"
    _eager(workers[0], name, manager)
    workers[1].call(programs.heap, name)
    with _half_way(gate, cluster) as begun:
        block = workers[0].start(_large, name)
        begun()
        for _ in range(5):
            assert workers[1].call(programs.figures, name).allocations == 0
    locked, ref = block.result()
    assert locked == 0 or locked >= LARGE
    workers[0].call(programs.free, [ref])
    workers[0].call(programs.destroy, name)


@pytest.mark.parametrize("manager", ["pooled", "direct"])
def test_a_heap_is_destroyed_while_its_eager_memory_is_got(gate, cluster, manager):
    first, second = cluster.workers[:2]
    before = _frames(cluster.managers[0])
    _eager(first, "short", manager)
    with _half_way(gate, cluster) as begun:
        block = first.start(_large, "short")
        begun()
        second.call(programs.destroy, "short")
        assert block.result() == "ClosedError"
    wait_until(lambda: _frames(cluster.managers[0]) <= before)


@pytest.mark.parametrize("half_way", [True, False])
def test_a_worker_dies_while_its_eager_memory_is_got(gate, half_way):
    with Cluster(nodes=1, workers=2) as cluster:
        dying, other = cluster.workers
        _eager(dying, "left", "direct")
        with _half_way(gate, cluster) if half_way else contextlib.nullcontext(lambda: None) as begun:
            dying.start(_large, "left")
            begun()
            wait_until(lambda: other.call(programs.figures, "left").in_use == 1)
            dying.kill()
            dying.process.wait()
        # It is given up, or was the worker's already: then it lives, as any block of a process that died.
        wait_until(lambda: other.call(programs.figures, "left").managed in (0, LARGE))
        assert other.call(_large, "left")[0] in (0, LARGE)
        assert other.call(programs.check, "left") is None


def test_a_node_that_joins_later_has_the_heaps():
    secret = "0" * 64
    managers, workers = [], []
    try:
        managers.append(ManagerProcess(secret, ["--listen", "127.0.0.1:0", "--ranks", "2"], None))
        workers.append(Worker(managers[0].socket, 0, 2, None))
        workers[0].wait_attached()
        refs = workers[0].call(programs.allocate, "joined", [100, MIB], 5, POOLED)
        options = ["--listen", "127.0.0.1:0", "--ranks", "2", "--join", managers[0].listen]
        managers.append(ManagerProcess(secret, options, None))
        workers.append(Worker(managers[1].socket, 1, 2, None))
        workers[1].wait_attached()
        assert workers[1].call(programs.read, refs)[0] == b"\5" * 100
        workers[1].call(programs.free, refs)
        assert workers[0].call(programs.figures, "joined").in_use == 0
    finally:
        for worker in workers:
            worker._end()
        for manager in reversed(managers):
            manager.end()


class _Interrupt(Exception):
    """What a signal handler raises."""


def _interrupted(node, name, seconds):
    """Allocate and free while a signal handler raises at any instruction; return how often it did."""
    heap = node.heap(name, manager="pooled", min_system_alloc="1M")
    rng = random.Random(1)
    raised, held = [], []
    #: Emptied by the handler, which so raises once in a turn: never where that is being handled.
    armed = []
    end = time.monotonic() + seconds

    def handler(number, frame):
        if armed:
            armed.clear()
            raised.append(number)
            raise _Interrupt

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    while time.monotonic() < end:
        with contextlib.suppress(_Interrupt):
            while time.monotonic() < end:
                armed[:] = (True,)
                held.append(heap.alloc(rng.choice((10, 100, 3000, 70_000, 300_000)), zero=False))
                while len(held) > 40:
                    block = held.pop(rng.randrange(len(held)))
                    if not block.freed:
                        block.free()
            armed.clear()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for block in held:
        if not block.freed:
            with contextlib.suppress(UsageError):  # an interrupted free may have been done
                block.free()
    return len(raised)


def test_signals_at_any_instruction_leave_the_heap_whole(workers):
    interrupted = workers[0].call(_interrupted, "signals", 2.0)
    assert interrupted > 5
    assert workers[0].call(programs.check, "signals") is None
    figures = workers[0].call(programs.figures, "signals")
    # Of each interruption at most the block that was on its way is lost to the program.
    assert figures.in_use <= interrupted and figures.refused_frees == 0
    assert workers[1].call(programs.steady, "signals", 1000, 100) == 0
    workers[0].call(programs.destroy, "signals")
