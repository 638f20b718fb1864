"""A heap as one process sees it: arguments, handles, realloc, arrays, threads, fork, the end of its node."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import subprocess
import sys
import threading

import msgspec
import numpy as np
import pytest

import dsm
import heap_programs as programs
from dsm import proc
from dsm.testing.cluster import ManagerProcess
from dsm.wire import heaps
from dsm.worker.regions import map_region
from dsm.worker.session import Descriptors

MIB = 1 << 20


@pytest.fixture(scope="module")
def manager():
    manager = ManagerProcess("0" * 64, ["--ranks", "0"], None)
    yield manager.socket
    manager.end()


@pytest.fixture
def node(manager, monkeypatch):
    monkeypatch.setenv("DSM_NODE", manager)
    with dsm.attach() as node:
        yield node


@pytest.fixture(params=["pooled", "direct"])
def heap(node, request):
    heap = node.heap(f"process-{request.param}", manager=request.param)
    yield heap
    heap.check()
    heap.destroy()


@pytest.fixture
def pooled(node):
    heap = node.heap("process", manager="pooled")
    yield heap
    heap.check()
    heap.destroy()


def test_a_block(heap):
    block = heap.alloc("1K")
    assert (block.nbytes, len(block.buffer), block.heap) == (1024, 1024, heap)
    assert block.usable_size == heap.usable_size(block) >= 1024
    block.buffer[:4] = b"abcd"
    assert bytes(block.array(2, "S2")) == b"abcd"
    assert block.array(dtype="f8").shape == (128,)
    assert block.address == block.array().ctypes.data
    assert copy.copy(block) is copy.deepcopy(block) is block
    block.free()
    assert block.freed


@pytest.mark.parametrize("error", [KeyboardInterrupt, dsm.LimitError])
def test_what_is_raised_while_it_is_asked_who_was_freed_loses_no_block(node, monkeypatch, error):
    """An eager block is made when it is allocated: nobody else could free it."""
    heap = node.heap(f"asks {error.__name__}", kind="eager", manager="direct")
    kept = heap.alloc(100)
    raised = []

    def ask(number):
        raised.append(number)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(heap._direct, "_ask_at", 1)
        patched.setattr(node._regions, "open", ask)
        try:
            heap.alloc(100).free()
        except KeyboardInterrupt:
            assert error is KeyboardInterrupt
    assert raised and heap.statistics().in_use == 1
    assert kept.array().sum() == 0
    heap.destroy()


def test_what_is_shown_of_a_block(heap):
    block = heap.alloc(100)
    if heap.options.manager == "direct":
        assert repr(block) == f"<dsm.Block of heap {heap.name!r}: 100 bytes, not used yet>"
    assert f"{block.address:#x}" in repr(block)
    block.free()
    assert repr(block) == f"<dsm.Block of heap {heap.name!r}: 100 bytes, freed>"


def test_no_bytes_at_all(heap):
    block = heap.alloc(0)
    assert block.array().shape == (0,) and block.usable_size > 0
    block.free()


@pytest.mark.parametrize("size", [10, 70_000, 3 * MIB])
def test_a_block_is_freed_once_and_not_used_afterwards(heap, size):
    block = heap.alloc(size)
    block.free()
    with pytest.raises(dsm.UsageError, match="double free"):
        block.free()
    with pytest.raises(dsm.UsageError, match="double free"):
        heap.free(block)
    for use in (
        lambda: block.buffer, lambda: block.array(), lambda: block.address, lambda: block.usable_size,
        lambda: block.ref(), lambda: pickle.dumps(block), lambda: heap.realloc(block, 10),
        lambda: heap.usable_size(block),
    ):  # fmt: skip
        with pytest.raises(dsm.UsageError, match="is used after this process freed it"):
            use()
    # Its memory belongs to another block now, which the old handle does not touch.
    other = heap.alloc(size)
    with pytest.raises(dsm.UsageError, match="double free"):
        heap.free(block)
    other.free()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((-1,), "nbytes is -1; it cannot be negative"),
        ((True,), "nbytes is True; pass bytes as an integer"),
        ((1.5,), "nbytes is 1.5; pass bytes as an integer"),
        (("1X",), "nbytes is '1X'; write bytes, or a number with K, M, G or T"),
        ((None,), "nbytes is None; pass bytes"),
        ((10, 3), "align is 3; it must be a power of two up to 2097152"),
        ((10, 0), "align is 0; it must be"),
        ((10, 1 << 22), "align is 4194304; it must be"),
        ((10, "16"), "align is '16', of type str"),
        ((10, 16, "yes"), "zero is 'yes'; pass True or False"),
        ((10, 16, True, "malloc"), "manager is 'malloc'; it must be 'pooled' or 'direct'"),
        ((1 << 60,), "would not fit if it were empty"),
    ],
)
def test_what_alloc_refuses(heap, arguments, said):
    with pytest.raises((dsm.UsageError, dsm.TooLargeError)) as caught:
        heap.alloc(*arguments)
    assert said in str(caught.value)


def test_what_free_refuses(heap, node):
    other = node.heap("other", manager="pooled")
    block = other.alloc(10)
    with pytest.raises(dsm.UsageError, match="is none of heap"):
        heap.free(block)
    with pytest.raises(dsm.UsageError, match="is none of heap"):
        heap.realloc(block, 10)
    with pytest.raises(dsm.UsageError, match="str is no block of heap"):
        heap.free("block")
    for array in (np.zeros(10), other.array(10), node.array("not of a heap", 10)):
        with pytest.raises(dsm.UsageError, match="is none of heap"):
            heap.free(array)
    other.destroy()


@pytest.mark.parametrize("align", [1, 2, 16, 32, 64, 512, 4096, 65536, MIB, 2 * MIB])
def test_alignment(heap, align):
    blocks = [heap.alloc(size, align) for size in (1, 100, 5000, 300_000)]
    assert all(block.address % align == 0 for block in blocks)
    for block in blocks:
        block.free()


def test_blocks_never_overlap(heap):
    rng = random.Random(5)
    live = {}
    for turn in range(400):
        size = rng.choice([rng.randrange(100), rng.randrange(5000), rng.randrange(400_000)])
        block = heap.alloc(size, zero=False)
        block.array()[:] = turn % 251
        live[turn] = block
        if len(live) > 30:
            gone = rng.choice(list(live))
            assert (live[gone].array() == gone % 251).all()
            live.pop(gone).free()
    spans = sorted((block.address, block.address + block.usable_size) for block in live.values())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    for turn, block in live.items():
        assert (block.array() == turn % 251).all()
        block.free()
    figures = heap.statistics()
    assert (figures.in_use, figures.used, figures.allocated) == (0, 0, 0)


def test_realloc_keeps_the_contents(heap):
    for sizes in ((10, 100, 10_000, 300_000, 2 * MIB, 500_000, 20), (3 * MIB, 5, 4 * MIB), (0, 1, 0)):
        block = heap.alloc(sizes[0])
        contents = b""
        for size in sizes[1:]:
            rng = np.random.default_rng(size)
            block.array()[:] = rng.integers(1, 255, block.nbytes, "u1")
            contents = bytes(block.buffer)
            block = heap.realloc(block, size)
            assert block.nbytes == size <= block.usable_size
            kept = min(size, len(contents))
            assert bytes(block.buffer) == contents[:kept] + bytes(size - kept)
        block.free()
    assert heap.statistics().in_use == 0


def test_realloc_in_place(pooled):
    block = pooled.alloc(1000)
    address = block.address
    block = pooled.realloc(block, 1020)  # of the same class
    assert (block.address, block.nbytes) == (address, 1020)
    block.free()
    large = pooled.alloc(MIB)
    address = large.address
    same = pooled.realloc(large, 2 * MIB)  # its buddy is free
    assert same is large and large.address == address and large.usable_size >= 2 * MIB
    between = pooled.alloc(2 * MIB)
    assert between.address >= address + 2 * MIB
    moved = pooled.realloc(same, 6 * MIB)
    assert moved is not same and same.freed and moved.address != address
    moved.free()
    between.free()
    figures = pooled.statistics()
    assert (figures.in_use, figures.allocated, figures.used) == (0, 0, 0)


def test_a_realloc_that_fails_changes_nothing(node):
    heap = node.heap("small", manager="pooled", max_bytes="4M", min_system_alloc="1M")
    block = heap.alloc(3 * MIB)
    block.array()[:] = 3
    with pytest.raises(dsm.TooLargeError):
        heap.realloc(block, 5 * MIB)
    with pytest.raises(dsm.UsageError, match="nbytes is -5"):
        heap.realloc(block, -5)
    other = heap.alloc(MIB)
    with pytest.raises(dsm.FullError):
        heap.realloc(block, 4 * MIB)
    assert (block.array() == 3).all() and block.nbytes == 3 * MIB
    block.free()
    other.free()
    heap.destroy()


def test_arrays(heap):
    for shape, dtype in (((10, 10), "f8"), (1000, "i4"), ((), "c16"), ((0, 5), "u1"), ((300, 400), "f8")):
        array = heap.array(shape, dtype)
        assert array.dtype == dtype and array.shape == np.zeros(shape).shape and not array.any()
        array[...] = 1
        heap.free(array)
        with pytest.raises(dsm.UsageError):
            heap.free(array)
    with pytest.raises(dsm.UsageError, match="dtype"):
        heap.array(10, "O")
    with pytest.raises(dsm.UsageError, match="negative"):
        heap.array(-1)
    with pytest.raises(dsm.UsageError, match="numpy has no array of shape"):
        heap.array((0, 1 << 62))
    with pytest.raises(dsm.UsageError, match="numpy has no array of shape"):
        heap.array((1,) * 60, ("f8", (1,) * 10))
    assert heap.statistics().in_use == 0


def test_numpy_takes_a_block_as_its_bytes(heap):
    block = heap.alloc(100)
    np.asarray(block)[3] = 7
    assert block.buffer[3] == 7 and np.asarray(block).shape == (100,) and np.sum(block) == 7
    block.free()
    with pytest.raises(dsm.UsageError, match="freed"):
        np.asarray(block)


def test_a_part_of_an_array_frees_nothing(heap):
    array = heap.array((10, 10))
    array[:] = 3
    for part in (array[:5], array[0], array[::2], array[:, :1], array[1:]):
        with pytest.raises(dsm.UsageError):
            heap.free(part)
    assert (array == 3).all()
    heap.free(array.reshape(5, 20).view("i8"))
    assert heap.statistics().in_use == 0


def test_what_array_of_a_block_refuses(heap):
    block = heap.alloc(100)
    for shape, dtype in ((13, "f8"), (101, "u1"), ((10, 11), "u1")):
        with pytest.raises(dsm.UsageError, match="does not lie in"):
            block.array(shape, dtype)
    block.free()


def test_one_process_has_one_handle_of_a_block(heap):
    block = heap.alloc(100)
    again = pickle.loads(pickle.dumps(block))
    assert again is block and dsm.ref(block).block() is block
    again.free()
    assert block.freed
    assert pickle.loads(pickle.dumps(heap)) is heap


def test_threads_share_a_heap(pooled):
    failures = []

    def work(seed):
        rng = random.Random(seed)
        live = []
        try:
            for turn in range(1500):
                block = pooled.alloc(rng.choice((16, 100, 1000, 20_000, 300_000)), zero=False)
                block.array()[:8] = seed
                live.append(block)
                if len(live) > 20 or turn % 7 == 0:
                    gone = live.pop(rng.randrange(len(live)))
                    assert (gone.array()[:8] == seed).all()
                    gone.free()
            for block in live:
                block.free()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    figures = pooled.statistics()
    assert (figures.in_use, figures.used, figures.refused_frees) == (0, 0, 0)
    assert figures.allocations == figures.frees == 6000


def _holds(block, value, nbytes):
    array = block.array()
    return array.size == nbytes and bool((array == value).all())


class _Wanderer(threading.Thread):
    """Allocates, reallocates and frees blocks of all sizes, also those that other threads allocated."""

    def __init__(self, heap, seed, shared, turns):
        super().__init__()
        self.heap, self.rng, self.shared, self.turns = heap, random.Random(seed), shared, turns
        self.wrong = None

    def run(self):
        try:
            for turn in range(self.turns):
                self.turn(turn % 251)
        except BaseException as error:
            self.wrong = error

    def turn(self, value):
        rng, size = self.rng, self.rng.choice((0, 1, 15, 16, 17, 100, 4095, 5000, 70_000, 300_000))
        block = self.heap.alloc(size, rng.choice((16, 16, 64, 4096)), zero=False)
        block.array()[:] = value
        self.shared.append((block, value, size))
        if len(self.shared) < 40 or rng.random() < 0.1:
            return
        for _ in range(2):
            block, value, size = self.shared.pop(rng.randrange(4))  # nobody else gets it
            assert _holds(block, value, size)
            if rng.random() < 0.3:
                new = rng.randrange(2 * size + 20)
                block = self.heap.realloc(block, new)
                array = block.array()
                assert (array[:size] == value).all() and not array[size:].any()
                array[:] = value
                self.shared.append((block, value, new))
            else:
                block.free()


@pytest.mark.parametrize("debug", [False, True])
def test_threads_pass_blocks_on_while_extents_come_and_go(node, debug):
    heap = node.heap(f"threads-{debug}", manager="pooled", min_system_alloc="64K", debug=debug)
    shared = []
    threads = [_Wanderer(heap, seed, shared, 120 if debug else 400) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [thread.wrong for thread in threads] == [None] * 8
    heap.check()
    figures = heap.statistics()
    assert (figures.in_use, figures.allocated) == (len(shared), sum(size for _, _, size in shared))
    for block, value, size in shared:
        assert _holds(block, value, size)
        block.free()
    figures = heap.statistics()
    assert (figures.in_use, figures.used, figures.allocated, figures.refused_frees) == (0, 0, 0, 0)
    heap.destroy()


def test_a_region_that_is_destroyed_while_it_is_opened(node):
    """Its memory is taken back at once, also when its descriptors are on their way: extents come and go."""
    region = node.region("short", 8192)
    described = region._described
    region.destroy()
    emptied = [os.memfd_create("emptied") for _ in range(3)]
    with pytest.raises(dsm.ClosedError, match="was destroyed while it was opened"):
        map_region(described, Descriptors(emptied))


def test_who_was_interrupted_when_a_batch_left_frees_on(pooled):
    blocks = [pooled.alloc(100) for _ in range(300)]
    cache = pooled._cache._cache
    surplus = cache.surplus

    def interrupted(cls):
        surplus(cls)
        raise KeyboardInterrupt

    cache.surplus = interrupted
    with pytest.raises(KeyboardInterrupt):
        for block in blocks:
            block.free()
    cache.surplus = surplus
    for block in blocks:
        if not block.freed:
            block.free()
    figures = pooled.statistics()
    assert figures.in_use == 1  # which was being freed then
    assert (figures.refused_frees, figures.frees) == (0, 299)


@pytest.mark.parametrize("at", ["surplus", "sent"])
def test_a_signal_handler_frees_while_a_batch_leaves(pooled, at):
    blocks = [pooled.alloc(100) for _ in range(300)]
    more = [pooled.alloc(100) for _ in range(300)]
    cache = pooled._cache._cache
    step = getattr(cache, at)

    def interrupted(*arguments):
        setattr(cache, at, step)
        if at == "surplus":
            found = step(*arguments)
        for block in more:
            block.free()
        return found if at == "surplus" else step(*arguments)

    setattr(cache, at, interrupted)
    for block in blocks:
        block.free()
    figures = pooled.statistics()
    assert (figures.in_use, figures.refused_frees) == (0, 0)
    again = [pooled.alloc(100) for _ in range(600)]
    assert len({block.address for block in again}) == 600
    for block in again:
        block.free()
    pooled.trim()
    assert pooled.statistics().managed == 0


def test_two_threads_cannot_free_one_block(pooled):
    for size in (100, 300_000):
        won = []
        for _ in range(50):
            block = pooled.alloc(size)
            start = threading.Barrier(2)

            def free(block=block, start=start, won=won):
                start.wait()
                try:
                    pooled.free(block)
                except dsm.UsageError:
                    return
                won.append(1)

            threads = [threading.Thread(target=free) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(won) == 50
    assert pooled.statistics().in_use == 0


def test_a_child_of_fork_has_a_cache_of_its_own(pooled):
    kept = pooled.alloc(100)
    kept.array()[:] = 1
    pooled.alloc(100).free()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            blocks = [pooled.alloc(100, zero=False) for _ in range(100)]
            for block in blocks:
                block.array()[:] = 2
            kept.array()[0] = 9
            os.write(write, pickle.dumps({block.address for block in blocks[50:]}))
            for block in blocks[:50]:
                block.free()
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        theirs = pickle.load(file)
    mine = [pooled.alloc(100, zero=False) for _ in range(100)]
    assert not theirs & {block.address for block in mine}
    assert kept.array()[0] == 9
    os.waitpid(child, 0)
    for block in [*mine, kept]:
        block.free()
    assert pooled.statistics().in_use == 50  # what the child had and did not free


SENDING = """
import multiprocessing, sys
import dsm

def free_there(queue, back):
    block = queue.get()
    block.array()[:] = 5
    back.put(bytes(block.buffer[:4]))
    queue.get().free()
    array = queue.get()
    heap = dsm.attach().heap("sent")
    heap.free(array)
    back.put(heap.statistics().in_use)

if __name__ == "__main__":
    heap = dsm.attach().heap("sent", manager=sys.argv[2])
    context = multiprocessing.get_context(sys.argv[1])
    queue, back = context.Queue(), context.Queue()
    process = context.Process(target=free_there, args=(queue, back))
    process.start()
    block = heap.alloc(100)
    queue.put(block)
    assert back.get(timeout=30) == bytes([5] * 4)
    assert (block.array() == 5).all()
    queue.put(heap.alloc(2000))
    queue.put(heap.array(1000))
    assert back.get(timeout=30) == 1
    process.join(30)
    assert process.exitcode == 0
    heap.check()
    print("done")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("way", ["pooled", "direct"])
def test_multiprocessing_sends_blocks(tmp_path, method, way):
    program = tmp_path / "sending.py"
    program.write_text(SENDING)
    environment = {key: value for key, value in os.environ.items() if key != "DSM_NODE"}
    done = subprocess.run(
        [sys.executable, program, method, way], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.stdout == "done\n", done.stderr


def test_the_end_of_the_node_is_the_end_of_its_heaps(manager, monkeypatch):
    monkeypatch.setenv("DSM_NODE", manager)
    node = dsm.attach()
    heap = node.heap("closing", manager="pooled")
    block = heap.alloc(100)
    node.close()
    for use in (lambda: heap.alloc(10), lambda: heap.free(block), heap.statistics, heap.check, heap.destroy):
        with pytest.raises(dsm.ClosedError, match="its node was closed"):
            use()
    with pytest.raises(dsm.ClosedError):
        node.heap("closing")


def test_a_reference_of_another_cluster_is_refused(heap):
    block = heap.alloc(10)
    reference = block.ref()
    block.free()
    with pytest.raises(dsm.UsageError, match="the reference is to a block of cluster"):
        dsm.BlockRef("0" * 32, *(getattr(reference, name) for name in list(reference.__dict__)[1:])).block()


@pytest.mark.parametrize("way", ["pooled", "direct"])
def test_eager_memory_is_there_at_once(node, way):
    heap = node.heap(f"eager-{way}", kind="eager", manager=way, min_system_alloc="1M")
    if way == "direct":
        heap.alloc("1M")
    figures = heap.statistics()
    assert figures.managed == MIB
    assert figures.locked in (0, MIB)
    (region,) = [r for r in node._regions._open.values() if r.options.heap == heap.name] or [None]
    if region is None:  # it is mapped at the first allocation
        block = heap.alloc(10)
        region, _ = block._region()
    before = node.statistics()
    table = node.page_table(np.asarray(region), nodes="here")
    assert set(table["owner"]) == {0} and len(table) == MIB // 4096
    region.buffer[::4096] = bytes(256)
    after = node.statistics()
    assert after.messages_out == before.messages_out
    heap.destroy()


def test_the_heap_of_a_name_is_one_object(node):
    assert node.heap("one") is node.heap("one", kind="lazy")
    for name in ("", "x" * 256, 5, None):
        with pytest.raises(dsm.UsageError, match=r"name"):
            node.heap(name)
    node.heap("one").destroy()
    assert programs.requests_of(node)


def test_properties_reach_the_heap(node, monkeypatch, tmp_path):
    file = tmp_path / "dsm.toml"
    file.write_text('[heap]\nlazy_manager = "pooled"\nmin_system_alloc = "2M"\npage_size = 8192\n')
    monkeypatch.setenv("DSM_CONFIG", str(file))
    monkeypatch.setenv("DSM_HEAP_PAGE_SIZE", "16K")
    heap = node.heap("properties", max_bytes="8M")
    heap.alloc(10)
    options = heap.options
    assert (options.kind, options.manager, options.max_bytes) == ("lazy", "pooled", 8 * MIB)
    assert heap.statistics().managed == 2 * MIB
    assert heap.alloc(10)._region()[0].page_size == 16384
    # Of a heap that exists only arguments count.
    monkeypatch.setenv("DSM_HEAP_PAGE_SIZE", "4096")
    assert node.heap("properties") is heap
    with pytest.raises(dsm.UsageError, match="page_size is 16384, asked for was 4096"):
        node.heap("properties", page_size=4096)
    monkeypatch.setenv("DSM_HEAP_COLOUR", "red")
    with pytest.raises(dsm.UsageError, match="DSM_HEAP_COLOUR is set, which is no property"):
        node.heap("properties")
    heap.destroy()


def test_who_was_interrupted_when_it_opened_a_heap_opens_it_again(node):
    options = node.heap("template", manager="pooled").options
    asked = heaps.OpenHeap(msgspec.structs.replace(options, name="again"))
    session = node._connection.session
    for _ in range(3):
        opened, received = session.call(asked, heaps.HeapOpened)
        assert len(received) == 1
        received.close()
    # Of a batch that nobody took: it comes back when another cache takes the place of this one.
    number = opened.heap.number
    taken, _ = session.call(heaps.HeapTake(number, 3, 32), heaps.HeapTaken)
    heap = node.heap("again")
    figures = heap.statistics()
    assert (figures.in_use, figures.cached) == (0, 0) and len(taken.addresses) == 32
    block = heap.alloc(100)
    block.free()
    heap.check()
    heap.destroy()


def test_eager_memory_that_is_not_there_is_refused(node):
    available = proc.memory()["MemAvailable"]
    with pytest.raises(
        dsm.LimitError, match=r"is eager: .* bytes were to be backed by memory at once, and MemAv"
    ):
        node.heap("greedy", kind="eager", min_system_alloc=4 * available, page_size="2M").alloc(2 * available)
    heap = node.heap("greedy")
    with pytest.raises(dsm.LimitError, match="is eager"):
        heap.alloc(2 * available)
    heap.alloc(100).free()  # there is room for less
    heap.destroy()
