"""What one process can do with leases: arguments, arrays, callbacks, threads, fork, and its end."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import OrderedDict

import numpy as np
import pytest

import dsm
import support
import threads
from dsm import proc
from dsm.types import RegionOptions
from dsm.units import MAX_DURATION_MS
from dsm.wire import control, leasing
from dsm.worker import ranges, regions

LONG_S = 300


@pytest.fixture(scope="module")
def address():
    """A private node's, that lives as long as this module."""
    keeper = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import dsm, os; dsm.attach(); print(os.environ['DSM_NODE'], flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "DSM_NODE"},
    )
    yield keeper.stdout.readline().strip()
    keeper.communicate("\n", 10)


@pytest.fixture
def node(address, monkeypatch):
    monkeypatch.setenv("DSM_NODE", address)
    with dsm.attach() as node:
        yield node
        for info in node.leases():
            support.wait_until(lambda: node.leases() == [], what=f"{info} should have ended in its test")


@pytest.fixture
def lease(node):
    with node.lease(4096, LONG_S) as lease:
        yield lease


# ---- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "duration", "words"),
    [
        (0, 1, "0 bytes"),
        (-1, 1, "negative"),
        (1.5, 1, "integer"),
        (True, 1, "integer"),
        (None, 1, "integer"),
        ("many", 1, "nbytes is 'many'"),
        ("-1K", 1, "nbytes"),
        (1, 0, "above 0"),
        (1, -1, "above 0"),
        (1, float("nan"), "above 0"),
        (1, float("inf"), "above 0"),
        (1, None, "above 0"),
        (1, "soon", "duration is 'soon'"),
        (1, "1d", "duration"),
        (1, MAX_DURATION_MS, "at most"),
    ],
)
def test_what_cannot_be_leased(node, nbytes, duration, words):
    with pytest.raises(dsm.UsageError, match=words):
        node.lease(nbytes, duration)
    assert node.leases() == []


@pytest.mark.parametrize("nbytes", ["5T", 1 << 62, 1 << 70])
def test_what_is_too_large(node, nbytes):
    with pytest.raises(dsm.LimitError) as raised:
        node.lease(nbytes, 1)
    assert type(raised.value).__name__ == "TooLargeError"


@pytest.mark.parametrize("heap", ["", 7, b"x", "x" * 300])
def test_a_heap_has_a_name(node, heap):
    with pytest.raises(dsm.UsageError, match="heap"):
        node.lease(1, 1, heap=heap)


@pytest.mark.parametrize(
    ("nbytes", "duration", "size", "seconds"),
    [("1K", "60s", 1024, 60), (1, "90000ms", 1, 90), (np.int64(10), 50, 10, 50), ("1.5K", "1h", 1536, 3600)],
)
def test_sizes_and_durations(node, nbytes, duration, size, seconds):
    with node.lease(nbytes, duration) as lease:
        assert lease.nbytes == size
        assert seconds - 30 < lease.expires_in <= seconds + 0.001
        assert lease.get() == bytes(size)


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("", None),
        ("token", None),
        (None, None),
        (7, b"k" * 16),
        ("no-uuid", b"k" * 16),
        (b"short", b"k" * 16),
        (uuid.UUID(int=1), b"short"),
        (uuid.UUID(int=1), "zz"),
        (uuid.UUID(int=1), 7),
        (uuid.UUID(int=1), None),
    ],
)
def test_what_is_no_token_id_or_key(node, what, key):
    with pytest.raises(dsm.UsageError, match=r"token|id of a lease|key"):
        node.open_lease(what, key)


def test_it_opens_by_token_or_by_id_and_key_however_written(node, lease):
    lease.set(b"here")
    for arguments in (
        (lease.token,),
        (lease.id, lease.key),
        (str(lease.id), lease.key.hex()),
        (lease.id.bytes, lease.key),
        (lease.id.hex, lease.read_key),
        (lease.read_token,),
    ):
        assert node.open_lease(*arguments).get(0, 4) == b"here"
    with pytest.raises(dsm.UnknownLeaseError):
        node.open_lease(uuid.uuid4(), lease.key)
    with pytest.raises(dsm.NotPermittedError):
        node.open_lease(lease.id, b"?" * 16)


def test_which_keys_a_handle_has(node, lease):
    assert None not in (lease.key, lease.read_key, lease.token, lease.read_token) and lease.writable
    reader, writer = node.open_lease(lease.read_token), node.open_lease(lease.token)
    assert (reader.key, reader.token, reader.writable) == (None, None, False)
    assert (reader.read_key, reader.read_token) == (lease.read_key, lease.read_token)
    assert (writer.key, writer.read_key, writer.read_token) == (lease.key, None, None)
    for handle in (lease, reader, dsm.ref(lease)):
        shown = repr(handle)
        assert lease.key.hex() not in shown and repr(lease.key) not in shown
        assert repr(lease.read_key) not in shown


# ---- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "n"),
    [
        (-1, 1),
        (0, -1),
        (0, 4097),
        (4097, 0),
        (4096, 1),
        (1 << 70, 1),
        (0, 1 << 70),
        (1.0, 1),
        (0, "1"),
        (True, 1),
        pytest.param(10**5000, 1, id="huge"),
    ],
)
def test_get_stays_inside(lease, offset, n):
    with pytest.raises(dsm.UsageError):
        lease.get(offset, n)


@pytest.mark.parametrize(
    ("data", "offset"),
    [(b"xx", 4095), (b"x", -1), (bytes(4097), 0), ("text", 0), (7, 0), (None, 0), (b"x", None),
     (np.zeros((4, 4))[:, 1], 0), ([1, 2], 0)],
)  # fmt: skip
def test_set_stays_inside_and_takes_bytes(lease, data, offset):
    with pytest.raises(dsm.UsageError):
        lease.set(data, offset)
    assert lease.get() == bytes(4096)


def test_get_and_set(lease):
    lease.set(b"")
    lease.set(b"", 4096)
    lease.set(b"abc")
    lease.set(bytearray(b"xyz"), 4093)
    lease.set(memoryview(b"12345678")[::1], 8)
    lease.set(np.arange(3, dtype=">u4"), 100)
    assert lease.get(0, 3) == b"abc" and lease.get(4093) == b"xyz" and lease.get(4096) == b""
    assert lease.get(8, 8) == b"12345678" and lease.get(100, 12) == np.arange(3, dtype=">u4").tobytes()
    assert len(lease.get()) == 4096


def test_arrays_and_buffer_are_the_memory(node, lease):
    lease.array((64, 8), "f8")[:] = 2.0
    assert lease.array((2,), "f8", offset=4080).tolist() == [2.0, 2.0]
    assert lease.array().shape == (4096,) and lease.array(dtype="f4").shape == (1024,)
    assert lease.array((2, 3), "u1", order="F").flags.f_contiguous
    lease.buffer[0:4] = b"abcd"
    assert lease.get(0, 4) == b"abcd" and lease.buffer.nbytes == 4096
    structured = lease.array(2, [("x", "i4"), ("y", "f8")])
    structured["y"] = 1.5
    with node.lease(1001, LONG_S) as odd:
        assert odd.array(dtype="u1").shape == (1001,)
        with pytest.raises(dsm.UsageError, match="whole number of items of 8"):
            odd.array(dtype="f8")
        assert odd.array(dtype="f8", offset=1).shape == (125,)


@pytest.mark.parametrize(
    "arguments",
    [
        (4097,),
        ((-1,),),
        ((2, 2048), "f8"),
        (1, "O"),
        (1, "u1", 4096),
        (1, "u1", -1),
        (1, "u1", 0, "X"),
        (None, "O"),
    ],
)
def test_arrays_stay_inside(lease, arguments):
    with pytest.raises(dsm.UsageError):
        lease.array(*arguments)


def test_a_reader_cannot_write(node, lease):
    lease.set(b"safe")
    reader = node.open_lease(lease.read_token)
    array = reader.array()
    assert reader.buffer.readonly and not array.flags.writeable
    for write in (
        lambda: array.__setitem__(0, 1),
        lambda: setattr(array.flags, "writeable", True),
        lambda: setattr(array[1:].flags, "writeable", True),
        lambda: reader.buffer.__setitem__(0, 1),
    ):
        with pytest.raises((ValueError, TypeError)):
            write()
    for call in (lambda: reader.set(b"x"), lambda: reader.renew(5), reader.release):
        with pytest.raises(dsm.NotPermittedError, match="opened with its read key"):
            call()
    with reader:
        pass
    assert lease.get(0, 4) == b"safe", "the end of a reader's block releases nothing"


def test_prefetch_and_pin_take_arrays_of_leases(node, lease):
    node.prefetch(lease.array(), write=True)
    with node.pin(lease.array()) as array:
        assert os.readv(os.open("/dev/zero", os.O_RDONLY), [memoryview(array)]) == 4096


def test_large_ones(node):
    data = np.random.default_rng(5).bytes(5_000_000)
    with node.lease("16M", LONG_S) as lease:
        lease.set(data, 1_000_000)
        assert lease.get(1_000_000, 5_000_000) == data
        assert lease.get(0, 1_000_000) == bytes(1_000_000)


# ---- ends ------------------------------------------------------------------------------------------


def test_a_block_releases(node):
    with node.lease(10, LONG_S) as lease:
        assert node.leases()[0].id == lease.id
    assert lease.expired and lease.expires_in == 0.0 and "ended" in repr(lease)
    with pytest.raises(dsm.LeaseExpiredError), lease:
        pass
    with node.lease(10, LONG_S) as lease:
        lease.release()


def test_every_handle_of_it_ends(node):
    lease = node.lease(10, LONG_S)
    others = [node.open_lease(lease.token), node.open_lease(lease.read_token)]
    views = [each.array() for each in (lease, *others)]
    others[0].release()
    for each in (lease, *others):
        assert each.expires_in == 0.0
        with pytest.raises(dsm.LeaseExpiredError, match=str(lease.id)):
            each.get()
    for view in views:
        with pytest.raises(dsm.LeaseExpiredError, match=f"page 0 of lease {lease.id}"):
            view.sum()


def test_an_error_of_an_ended_lease_is_a_closed_error_and_others_go_on(node, lease):
    over = node.lease(10, LONG_S)
    view = over.array()
    over.release()
    with pytest.raises(dsm.ClosedError):
        view.sum()
    lease.set(b"still here")
    a = node.array("beside", 10)
    node.destroy("beside")
    with pytest.raises(dsm.ClosedError) as raised:
        a.sum()
    assert type(raised.value) is dsm.ClosedError


def test_arrays_of_leases_cannot_be_destroyed_without_their_key(node, lease):
    with pytest.raises(dsm.NotPermittedError, match=r"Lease\.release"):
        node.destroy(lease.array())
    lease.set(b"alive")


def test_a_closed_node_is_closed(address, monkeypatch):
    monkeypatch.setenv("DSM_NODE", address)
    with dsm.attach() as node:
        lease = node.lease(4096, LONG_S)
        view, token = lease.array(), lease.token
        called = []
        lease.on_expiry(called.append)
    for use in (lease.get, lambda: lease.set(b"x"), lambda: lease.renew(1), lease.release, view.sum):
        with pytest.raises(dsm.ClosedError) as raised:
            use()
        assert type(raised.value) is dsm.ClosedError
    with dsm.attach() as node:
        again = node.open_lease(token)
        again.release()
        assert called == []


def test_another_cluster_counts_its_regions_anew(monkeypatch):
    """Region 1 of the first cluster was a lease; that of the second is none, and is not called one."""
    monkeypatch.delenv("DSM_NODE", raising=False)
    with dsm.attach() as node:
        lease = node.lease(100, LONG_S)
        lease.release()
    monkeypatch.delenv("DSM_NODE")
    with dsm.attach() as node:
        array = node.array("first", 10)
        node.destroy("first")
        with pytest.raises(dsm.ClosedError, match="region 'first'") as raised:
            array.sum()
        assert type(raised.value) is dsm.ClosedError


NONSENSE = [
    leasing.CreateLease(b"", 1, 1, bytes(32), bytes(32)),
    leasing.CreateLease(b"x" * 16, 1, 1, bytes(31), bytes(32)),
    leasing.CreateLease(b"x" * 16, 1, 1, bytes(32), bytes(1000)),
    leasing.CreateLease(b"x" * 16, -1, 1, bytes(32), bytes(32)),
    leasing.CreateLease(b"x" * 16, 2**63 - 1, 1, bytes(32), bytes(32)),
    leasing.CreateLease(b"x" * 16, 2**64 - 1, 1, bytes(32), bytes(32)),
    leasing.CreateLease(b"x" * 16, 1, -(2**63), bytes(32), bytes(32)),
    leasing.CreateLease(b"x" * 16, 1, 2**64 - 1, bytes(32), bytes(32)),
    leasing.CreateLease(b"x" * 16, 1, 1, bytes(32), bytes(32), heap=""),
    leasing.CreateLease(b"x" * 16, 1, 1, bytes(32), bytes(32), heap="\n" * 5000),
    leasing.OpenLease(b"", b""),
    leasing.OpenLease(bytes(60_000), bytes(60_000)),
    leasing.RenewLease(b"x" * 16, b"", 0),
    leasing.RenewLease(b"x" * 16, b"", 2**64 - 1),
    leasing.AskLease(b"", bytes(100_000)),
    leasing.ReleaseLease(b"x" * 17, b""),
    leasing.AwaitDemand(),
    control.RegionReady(2**63),
    control.CreateRegion(RegionOptions(1, use="lease")),
    control.CreateRegion(RegionOptions(1, use="nothing")),
]


@pytest.mark.parametrize("request_", NONSENSE, ids=lambda request_: type(request_).__name__)
def test_nonsense_is_refused_and_disturbs_nobody(node, lease, request_):
    with pytest.raises(dsm.DSMError) as raised:
        node._connection.session.call(request_, object)
    assert not isinstance(raised.value, (dsm.InternalError, dsm.PeerError))
    lease.set(b"undisturbed")
    assert [info.id for info in node.leases()] == [lease.id]


def test_numbers_that_mean_nothing_change_nothing(node, lease):
    call = node._connection.session.call
    call(leasing.DemandDone(2**62, -1, "x" * 50_000), control.Done)
    assert len(call(leasing.ListLeases(-(2**63)), leasing.LeaseList)[0].rows) == 1
    assert call(leasing.ListLeases(2**64 - 1), leasing.LeaseList)[0].rows == []


def test_many_leases_one_after_the_other_leave_nothing_behind(node):
    def maps():
        return len(list(proc.mappings()))

    def use(count):
        for _ in range(count):
            with node.lease(5000, LONG_S) as lease:
                lease.array()[:] = 1
        gc.collect()

    use(50)
    before, descriptors = maps(), len(os.listdir("/proc/self/fd"))
    use(300)
    assert maps() <= before + 5 and len(os.listdir("/proc/self/fd")) <= descriptors


def test_leases_that_run_out_unused_leave_nothing_behind(node):
    before = len(list(proc.mappings()))
    handles = [node.lease(5000, LONG_S) for _ in range(100)]
    for each in handles:
        each.renew(0.05)
    support.wait_until(lambda: all(each._region.closed for each in handles))
    assert len(list(proc.mappings())) <= before + 20


# ---- callbacks -------------------------------------------------------------------------------------


def test_a_callback_that_raises_is_logged_and_disturbs_nothing(node, caplog):
    called = []
    lease = node.lease(10, LONG_S)

    def fail(lease):
        raise RuntimeError("a bug in a callback")

    def leave(lease):
        raise SystemExit

    for each in (fail, leave, called.append):
        lease.on_expiry(each)
    with caplog.at_level(logging.ERROR, "dsm"):
        lease.release()
        support.wait_until(lambda: called == [lease])
    assert "a bug in a callback" in caplog.text and str(lease.id) in caplog.text
    lease.on_expiry(called.append)
    support.wait_until(lambda: called == [lease] * 2)


def test_a_slow_callback_holds_up_no_end(node):
    go_on = threading.Event()
    first, second = node.lease(10, LONG_S), node.lease(10, LONG_S)
    first.on_expiry(lambda lease: go_on.wait(20))
    first.release()
    view = second.array()
    second.renew(0.1)
    support.wait_until(lambda: second._region.closed)
    with pytest.raises(dsm.LeaseExpiredError):
        view.sum()
    go_on.set()


def test_a_callback_may_use_dsm_and_lease_again(node):
    tokens = []
    lease = node.lease(10, LONG_S)
    lease.on_expiry(lambda old: tokens.append(node.lease(old.nbytes, LONG_S).token))
    lease.renew(0.05)
    node.open_lease(support.wait_value(lambda: tokens and tokens[0])).release()


@pytest.mark.parametrize("callback", [None, 7, "print"])
def test_a_callback_can_be_called(lease, callback):
    with pytest.raises(dsm.UsageError, match="callback"):
        lease.on_expiry(callback)


# ---- threads, processes ----------------------------------------------------------------------------


def test_threads_share_a_lease(node, lease):
    def write(index):
        for _ in range(50):
            lease.set(bytes([index]) * 64, index * 64)
            assert lease.get(index * 64, 64) == bytes([index]) * 64
        return node.open_lease(lease.token).get(index * 64, 1)

    assert threads.in_threads(*[lambda i=i: write(i) for i in range(8)]) == [bytes([i]) for i in range(8)]


def test_threads_that_end_it_at_once_end_it_once(node):
    lease = node.lease(10, LONG_S)
    outcomes = threads.in_threads(*[lease.release] * 6)
    assert outcomes.count(None) == 1
    assert all(isinstance(each, dsm.LeaseExpiredError) for each in outcomes if each is not None)


def test_pickles_and_references_open_it_again(node, lease):
    lease.set(b"passed on")
    for copy in (pickle.loads(pickle.dumps(lease)), pickle.loads(pickle.dumps(dsm.ref(lease))).lease()):
        assert (copy.id, copy.key, copy.get(0, 9)) == (lease.id, lease.key, b"passed on")
    with pytest.raises(dsm.UsageError, match="cluster"):
        dsm.LeaseRef("0" * 32, lease.id, lease.key).lease()


MULTIPROCESSING = """
import multiprocessing, sys
import dsm

def work(lease, view, queue):
    lease.set(b"child", 100)
    queue.put((view.tolist(), view.flags.writeable))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with dsm.attach() as node, node.lease(4096, 300) as lease:
        lease.array()[:3] = 7
        queue = context.Queue()
        child = context.Process(target=work, args=(lease, lease.array(3), queue))
        child.start()
        print(queue.get(timeout=30))
        child.join(30)
        print(lease.get(100, 5), child.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_passes_leases_and_their_arrays(address, method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(MULTIPROCESSING)
    done = subprocess.run(
        [sys.executable, str(program), method],
        env=os.environ | {"DSM_NODE": address},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "([7, 7, 7], True)\nb'child' 0\n", done.stderr


def _in_child(function):
    """Run a function in a child of fork; return what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(function()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer.decode()


def _error_of(use):
    try:
        return use()
    except dsm.DSMError as error:
        return type(error).__name__


def test_a_child_of_fork_has_the_lease_and_hears_its_end(node):
    lease = node.lease(4096, LONG_S)
    view = lease.array()
    parents = []
    lease.on_expiry(parents.append)

    def child():
        view[0] = 5
        heard = []
        lease.on_expiry(heard.append)
        lease.release()
        support.wait_until(lambda: heard)
        return len(heard), _error_of(view.sum), _error_of(lease.get), parents

    assert _in_child(child) == "(1, 'LeaseExpiredError', 'LeaseExpiredError', [])"
    with pytest.raises(dsm.LeaseExpiredError):
        view.sum()
    support.wait_until(lambda: parents == [lease])


def test_a_child_of_fork_keeps_what_its_parent_knew_of_ended_leases(node):
    lease = node.lease(4096, LONG_S)
    view = lease.array()
    lease.release()
    assert _in_child(lambda: (_error_of(view.sum), lease.expires_in)) == "('LeaseExpiredError', 0.0)"


def test_an_interrupted_wait_leaves_no_lease(node):
    """Ctrl-C while the manager is stopped: the lease that it makes later is released."""
    pid = node._connection.attached.manager_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        interrupter = threads.interrupt_when(lambda: node._connection.session._waiting)
        with pytest.raises(KeyboardInterrupt):
            node.lease(4096, LONG_S)
        interrupter.join()
    finally:
        os.kill(pid, signal.SIGCONT)
    support.wait_until(lambda: node.leases() == [])


PROGRAM = """
import dsm, sys
node = dsm.attach()
lease = node.lease(100, 300)
lease.on_expiry(lambda lease: print("called"))
lease.array()[:] = 1
{last}
print("end", flush=True)
"""


@pytest.mark.parametrize(
    "last", ["", "lease.on_expiry(lambda lease: __import__('time').sleep(60)); lease.release()"]
)
def test_the_interpreter_ends_though_leases_live_and_callbacks_run(last):
    environment = {key: value for key, value in os.environ.items() if key != "DSM_NODE"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(last=last)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0 and "end" in done.stdout and done.stderr == ""
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("how", ["pin", "prefetch"])
def test_a_lease_that_ends_between_the_answer_to_a_pin_and_the_mapping_is_over(node, monkeypatch, how):
    lease = node.lease(5000, LONG_S)
    array, bring = lease.array(), ranges._bring

    def bring_and_end(*arguments):
        result = bring(*arguments)
        lease.release()
        return result

    monkeypatch.setattr(ranges, "_bring", bring_and_end)
    with pytest.raises(dsm.LeaseExpiredError):
        node.pin(array).__enter__() if how == "pin" else node.prefetch(array)


def test_a_process_remembers_some_of_the_leases_that_it_had(node, monkeypatch):
    monkeypatch.setattr(regions, "_CLOSED_KNOWN", 3)
    monkeypatch.setattr(regions, "_closed", OrderedDict())
    lasting = node.lease(100, LONG_S)
    over = []
    for _ in range(5):
        with node.lease(100, LONG_S) as lease:
            over.append(lease.array())
    assert len(regions._closed) == 3
    for array in over[-3:]:
        with pytest.raises(dsm.LeaseExpiredError):
            array.sum()
    for array in over[:2]:
        with pytest.raises(dsm.ClosedError, match=r"region [0-9]+"):
            array.sum()
    array = lasting.array()
    lasting.release()
    with pytest.raises(dsm.LeaseExpiredError):
        array.sum()


def test_what_is_pinned_may_end(node):
    lease = node.lease(5000, LONG_S)
    with node.pin(lease.array()):
        lease.release()
    array = node.array(None, 1000)
    with node.pin(array):
        node.destroy(array)
