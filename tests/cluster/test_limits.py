"""What happens at a limit: an error that names the value, the bound and what to change, and life goes on."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import subprocess
import sys

import msgspec
import numpy as np
import pytest

import dsm
from dsm.limits import ADDRESS_LOW, MAX_REGION_BYTES, MAX_WORKERS_PER_NODE
from dsm.testing import Cluster
from dsm.wire import control
from dsm.worker import regions
from strangers import Known, Local


def _create(node, first, count):
    for number in range(first, first + count):
        node.array(f"array {number} " + "x" * 200, 100, "u1")[:] = number % 100


def _look(node):
    arrays = node.arrays()
    return len(arrays), [int(node.open(name)[50]) for name in list(arrays)[-3:]]


def test_more_arrays_than_fit_one_answer():
    with Cluster(nodes=2) as cluster:
        cluster.workers[1].call(_create, 0, 700)
        assert [worker.call(_look) for worker in cluster.workers] == [(700, [97, 98, 99])] * 2


def test_a_manager_without_descriptors_refuses_a_region_and_goes_on():
    with Cluster() as cluster:
        worker, manager = cluster.workers[0], cluster.managers[0]
        before = resource.prlimit(manager.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(manager.pid, resource.RLIMIT_NOFILE, (64, before[1]))
        with pytest.raises(dsm.LimitError, match="Too many open files"):
            worker.call(_create, 0, 64)
        resource.prlimit(manager.pid, resource.RLIMIT_NOFILE, before)
        worker.call(_create, 0, 64)
        assert worker.call(_look)[0] == 64


# -- the manager's limits --------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(pid, limit, value):
    """Give another process a limit for a while."""
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (value, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, limit, before)


def addresses(pid, kind=0):
    """Bytes of addresses that a process uses; of kind 5 those of private memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[kind]) * mmap.PAGESIZE


def _array(node, name, size, page_size=4096):
    return node.array(name, size, "u1", page_size=page_size).nbytes


def _attach_more(node):
    return dsm.attach() is node


@pytest.mark.parametrize("node", [0, 1])
def test_a_manager_without_addresses_refuses_a_region_and_goes_on(node):
    """Node 0 decides; another node that cannot keep its part of a region ends, and says why."""
    with Known(2) as cluster:
        pid = cluster.managers[node].pid
        with limited(pid, resource.RLIMIT_AS, addresses(pid) + (64 << 20)):
            if node == 0:
                for worker in cluster.workers:
                    with pytest.raises(dsm.LimitError, match=r"needs \d+ bytes of addresses.*RLIMIT_AS \d+"):
                        worker.call(_array, "large", 1 << 30)
                assert cluster.workers[1].call(_array, "small", 100) == 100
            else:
                with contextlib.suppress(dsm.DSMError):
                    cluster.workers[0].call(_array, "large", 1 << 30)
                cluster.log.wait("this node ends: node 1 cannot keep another region of 1073741824 bytes")
        if node == 0:
            assert cluster.workers[0].call(_array, "large", 1 << 30) == 1 << 30


def test_a_manager_without_data_memory_refuses_a_region_and_goes_on():
    with Cluster(nodes=2) as cluster:
        pid = cluster.managers[0].pid
        limit = addresses(pid, 5) + (64 << 20)
        with limited(pid, resource.RLIMIT_DATA, limit):
            with pytest.raises(dsm.LimitError, match=r"for the page tables.*RLIMIT_DATA \d+.*page_size"):
                cluster.workers[0].call(_array, "large", 1 << 36)  # 160 MiB of tables
            assert cluster.workers[1].call(_array, "large", 1 << 36, 1 << 20) == 1 << 36


def test_page_tables_larger_than_memory_are_refused(monkeypatch):
    from dsm.manager import room
    from dsm.types import Region, RegionOptions

    monkeypatch.setattr(room, "_available_bytes", lambda: 1 << 30)
    with pytest.raises(dsm.LimitError, match=r"node 3 MemAvailable is 1073741824: choose a larger page_size"):
        room.check(Region(1, RegionOptions(1 << 40), ADDRESS_LOW, (3,)), 3)
    room.check(Region(1, RegionOptions(1 << 40, page_size=1 << 20), ADDRESS_LOW, (3,)), 3)


def test_the_257th_worker_of_a_node():
    with Known(1) as cluster, contextlib.ExitStack() as stack:
        for number in range(1, MAX_WORKERS_PER_NODE):
            local = stack.enter_context(contextlib.closing(Local(cluster.managers[0].socket)))
            assert local.ask(control.Attach(os.getpid(), 1)).worker == number
        found = run("node = dsm.attach()", DSM_NODE=cluster.managers[0].socket)
        assert "LimitError: this node has 256 workers, as many as it can have; start fewer" in found
        stack.close()
        assert "attached" in run("dsm.attach(); print('attached')", DSM_NODE=cluster.managers[0].socket)


# -- a worker's limits -----------------------------------------------------------------------------------


def run(script, **environment):
    """Run a program of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import dsm, os, resource, sys\n{script}"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.stdout


def _with_few_addresses(node):
    resource.setrlimit(resource.RLIMIT_AS, (addresses("self") + (64 << 20), resource.RLIM_INFINITY))
    try:
        with pytest.raises(
            dsm.LimitError, match=r"needs \d+ bytes of addresses.*RLIMIT_AS.*ulimit -v"
        ) as found:
            node.array("large", 1 << 30, "u1")
        assert "region 'large', 1073741824 bytes" in str(found.value)
        node.array("small", 100, "u1")[:] = 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    node.array("large", 1 << 30, "u1")[0] = 1


def _with_few_descriptors(node):
    first = node.array("first", 4096, "u1")
    first[:] = 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    free = [os.dup(0) for _ in range(used)]  # the holes below
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        with pytest.raises(dsm.LimitError, match=r"no room for 3 more descriptors.*may have \d+ open files"):
            node.array("second", 4096, "u1")
        assert node.array("first", 4096, "u1").sum() == 4096, "what is open needs none"
        assert node.atomic("counter").fetch_add(1) == 0
        child = os.fork()
        if child == 0:
            os._exit(0 if node.closed else 1)  # could not attach, and said so
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(free.pop())
        with pytest.raises(dsm.LimitError, match="no room"):
            node.array("second", 4096, "u1")
    finally:
        for descriptor in free:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    node.array("second", 4096, "u1")[:] = 2
    child = os.fork()
    if child == 0:
        os._exit(int(node.array("second", 4096, "u1")[5]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def _fill_maps():
    """Use up this process's memory maps; return what gives them back."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with open("/proc/sys/vm/max_map_count") as file:
        most = int(file.read())
    if most > 1 << 18:
        pytest.skip("vm.max_map_count is high: filling it takes too long")
    size = 2 * most * mmap.PAGESIZE
    base = libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
    page = 0
    while libc.mprotect(base + 2 * page * mmap.PAGESIZE, mmap.PAGESIZE, mmap.PROT_READ) == 0:
        page += 1
    assert ctypes.get_errno() == 12 and page > 100
    return lambda: libc.munmap(base, size)


def _with_no_maps(node):
    old = node.array("old", (100, 4096), "u1")
    old[:] = 1
    give_back = _fill_maps()
    try:
        with pytest.raises(dsm.LimitError, match=r"\d+ memory maps, of \d+ that vm.max_map_count allows"):
            node.array("new", 100, "u1")
        assert old.sum() == 100 * 4096, "what is mapped stays"
    finally:
        give_back()
    assert node.array("new", 100, "u1").sum() == 0


@pytest.mark.parametrize("program", [_with_few_addresses, _with_few_descriptors, _with_no_maps])
def test_a_worker_at_a_limit_of_its_process_goes_on_and_so_do_others(program):
    with Cluster(workers=2) as cluster:
        cluster.workers[0].call(program)
        assert cluster.workers[1].call(_array, "another", 100) == 100
        assert cluster.workers[0].call(_attach_more)


ATTACH = "\ntry: dsm.attach()\nexcept dsm.LimitError as error: print('refused:', error)"
TOO_LITTLE = {
    "RLIMIT_NOFILE": (
        "import dsm.worker.attach\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')), 20000))",
        "open files (RLIMIT_NOFILE",
    ),
    "RLIMIT_AS": (
        "import dsm.worker.attach\nused = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 4096, -1))",
        "RLIMIT_AS allows",
    ),
    "RLIMIT_DATA": (
        "import dsm.worker.attach\nused = int(open('/proc/self/statm').read().split()[5]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 20), -1))",
        "RLIMIT_DATA allows",
    ),
}


@pytest.mark.parametrize("limit", TOO_LITTLE)
def test_attaching_at_a_limit(limit):
    script, words = TOO_LITTLE[limit]
    with Cluster() as cluster:
        found = run(script + ATTACH, DSM_NODE=cluster.managers[0].socket)
        assert "refused: this process cannot attach: " in found and words in found, found
        assert cluster.workers[0].call(_array, "another", 100) == 100


# -- addresses -------------------------------------------------------------------------------------------


def _map(at, access, flags):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    assert libc.mmap(at, 4096, access, flags, -1, 0) == at


def _unmap(at):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    assert libc.munmap(at, 4096) == 0


def _taken(node):
    """Somebody maps memory where the next region would lie."""
    here = node.region("first", 8).address
    at = here + (4 << 20)
    _map(at, 3, 0x100022)
    with pytest.raises(
        dsm.AddressRangeError, match="in use in this process by memory without a name"
    ) as found:
        node.region("second", 8 << 20)
    assert hex(at) in str(found.value) and "DSM_ADDRESS_LOW" in str(found.value)
    _unmap(at)
    node.region("second", 8 << 20).array(4, "u1")[:] = 1


def test_addresses_that_are_taken_are_named_with_who_has_them():
    with Cluster() as cluster:
        cluster.workers[0].call(_taken)


def _behind_closed(node, mib):
    region = node.region(None, 4 << 20)
    options = msgspec.structs.replace(region.options, nbytes=16 << 20)
    wider = msgspec.structs.replace(region._described, options=options)
    region.destroy()
    at = region.address + (mib << 20)
    _map(at, 0, 0x104022)
    said = regions._who_is_there(wider)
    assert said.startswith(f"memory without a name at {at:#x}"), said
    _unmap(at)
    assert regions._who_is_there(wider) == "somebody else"
    open_region = node.region("open", 4 << 20)
    assert open_region.address < wider.address + wider.size
    assert regions._who_is_there(wider) == f"region 'open', which is open, at {open_region.address:#x}"
    open_region.destroy()


@pytest.mark.parametrize("mib", [4, 5])
def test_a_closed_region_in_front_of_what_is_in_the_way_is_not_named(mib):
    """It gives way; where they touch, the system says of both in one line that they are there."""
    with Cluster() as cluster:
        cluster.workers[0].call(_behind_closed, mib)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ("nonsense", "", "DSM_ADDRESS_LOW is 'nonsense'; it must be a hexadecimal multiple of 0x200000"),
        ("580000001000", "", "DSM_ADDRESS_LOW is '580000001000'"),
        ("", "800000000000", "DSM_ADDRESS_HIGH is '800000000000'"),
        ("600000000000", "580000000000", "the range of addresses 0x600000000000 to 0x580000000000 is empty"),
    ],
)
def test_a_range_of_addresses_that_is_none(low, high, words):
    found = run("dsm.attach()", DSM_ADDRESS_LOW=low, DSM_ADDRESS_HIGH=high)
    assert "UsageError" in found and words in found


def test_a_range_of_addresses_that_is_too_small():
    script = "dsm.attach().array('a', 1 << 30, 'u1')"
    found = run(script, DSM_ADDRESS_LOW="590000000000", DSM_ADDRESS_HIGH="590010000000")
    assert "LimitError: 1073741824 bytes of addresses are needed and at most" in found
    assert "to 0x590010000000" in found and "DSM_ADDRESS_HIGH to a wider range" in found


# -- sizes -----------------------------------------------------------------------------------------------


def _larger_than_memory(node):
    """Memory is given page by page: a region may be larger than the machine's, what is touched may not."""
    size = 2 * (os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE + _swap()) >> 21 << 21
    array = node.array("huge", size, "u1", page_size=2 << 20)
    array[0] = array[-1] = 7
    assert int(array[0]) + int(array[-1]) + int(array[size // 2]) == 14
    for bring in (node.prefetch, node.pin):
        with pytest.raises(dsm.LimitError, match=rf"needs {size} bytes on this node, whose machine has"):
            bring(array)
    with node.pin(array[:100]):
        pass
    node.destroy(array)
    with pytest.raises(dsm.LimitError, match=f"the most is {MAX_REGION_BYTES}; divide it"):
        node.array("too huge", MAX_REGION_BYTES + 1, "u1")


def _swap():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("SwapTotal"))


def test_a_region_larger_than_memory():
    with Cluster(nodes=2) as cluster:
        cluster.workers[0].call(_larger_than_memory)


OPTIONS = {
    "page_size": [np.array([1, 2]), np.array(4096), 4097, 0, -4096, 1 << 22, "4096", None, True, 4096.0],
    "consistency": [np.array([1, 2]), "weak", None, 1],
    "home": [np.array([1, 2]), "moon", None, 64, -1, 1.5],
    "order": [np.array([1, 2]), "A", None],
    "fill": [np.array([1, 2]), "x", 2.5, None],
    "dtype": [object, "O", "nonsense", np.array([1, 2]), [("a", "O")], 7],
    "shape": [
        np.array([[1, 2]]), -1, (2, -3), 2.5, "ab", None, (1,) * 65, (0, 1 << 70), (1 << 40,) * 2, (None,),
    ],
    "name": [np.array([1, 2]), "", "x" * 256, "é" * 128, "a\0b", 7, b"bytes", "\ud800"],
}  # fmt: skip


def _wrong_options(node):
    good = {"name": "good", "shape": 4, "dtype": "u1"}
    for option, values in OPTIONS.items():
        for value in values:
            with pytest.raises((dsm.UsageError, dsm.LimitError)) as found:
                node.array(**{**good, option: value})
            words = str(found.value)
            assert option in words or "region would have" in words, words
            assert len(words) < 700, words
    for nbytes in (np.array([1, 2]), -1, 1.5, None, "8", 1 << 70, True):
        with pytest.raises((dsm.UsageError, dsm.LimitError)):
            node.region(None, nbytes)
    for parties in (np.array([1, 2]), 0, -1, 1 << 31, 1.5, "2", True):
        with pytest.raises(dsm.UsageError, match="parties is"):
            node.barrier("b", parties)
    for value in (np.array([1, 2]), 1 << 63, 1.5, "2"):
        with pytest.raises(dsm.UsageError, match="initial is"):
            node.atomic("a", value)
    for make in (node.lock, node.atomic, lambda name: node.barrier(name, 1)):
        with pytest.raises(dsm.UsageError, match="257 bytes; names have 1 to 255"):
            make("x" * 257)
    assert not node.arrays()


def test_options_that_cannot_be():
    with Cluster() as cluster:
        cluster.workers[0].call(_wrong_options)


# -- many ------------------------------------------------------------------------------------------------


def _create_and_destroy(node, times):
    def maps():
        with open("/proc/self/maps") as lines:
            return sum(1 for _ in lines)

    node.destroy(node.array("x", 100, "u1"))
    before = maps()
    for i in range(times):
        array = node.array("x", 5000, "u1")
        array[i % 5000] = 1
        node.destroy("x")
    return maps() - before


def test_thousands_of_regions_one_after_the_other():
    with Cluster() as cluster:
        grown = cluster.workers[0].call(_create_and_destroy, 1500)
        assert grown < 20, "what is reserved for destroyed regions is one map"
        manager = cluster.managers[0].pid
        with open(f"/proc/{manager}/maps") as lines:
            assert sum("dsm-" in line for line in lines) < 40
        assert len(os.listdir(f"/proc/{manager}/fd")) < 40
