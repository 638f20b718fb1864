"""Errors of page faults: raised where they belong, once, with a message; never a crash or a silent value."""

import _thread
import random
import signal
import threading
import time

import numpy as np
import pytest

import dsm
from dsm.errors import Status
from dsm.worker import raising
from support import wait_until

CLASSES = [
    (Status.PAGE_LOST, dsm.PageLostError, "other pages can still be used"),
    (Status.PAGE_TIMEOUT, dsm.PageTimeoutError, "not lost"),
    (Status.LIMIT, dsm.LimitError, "vm.max_map_count"),
    (Status.CLOSED, dsm.ClosedError, "destroyed"),
    (Status.INTERNAL, dsm.InternalError, "status 11"),
]


def lost(node, name, size=10):
    return node.array(f"status-{Status.PAGE_LOST:d}-{name}", size)


@pytest.mark.parametrize("status, cls, words", CLASSES, ids=str)
def test_each_status_is_its_exception(node, needs_fake, status, cls, words):
    a = node.array(f"status-{status:d}-each", 10_000)
    with pytest.raises(cls, match=f"page 0 of region 'status-{status:d}-each'.*{words}") as caught:
        a.sum()
    assert type(caught.value) is cls


def test_a_single_index_raises_before_its_value_is_used_by_a_call(node, needs_fake):
    a, seen = lost(node, "index"), []
    with pytest.raises(dsm.PageLostError):
        seen.append(float(a[3]))
    assert seen == []


def test_a_write_raises(node, needs_fake):
    a = lost(node, "write")
    with pytest.raises(dsm.PageLostError):
        a.fill(3)


def test_one_operation_over_many_pages_raises_once(node, needs_fake):
    a = lost(node, "many", 50 * 512)
    for _ in range(5):
        with pytest.raises(dsm.PageLostError):
            a.sum()
        for _ in range(1000):  # a second exception would come here
            len("")


def test_every_access_raises_again(node, needs_fake):
    a = lost(node, "again")
    for _ in range(20):
        with pytest.raises(dsm.PageLostError):
            a.max()


def test_each_thread_gets_its_own(node, needs_fake):
    outcomes = []

    def touch(index):
        a = lost(
            node, f"thread-{index}-", 10 if index % 2 else 5000
        )  # with and without the interpreter's lock
        for _ in range(10):
            try:
                a.sum()
                outcomes.append("nothing")
            except dsm.PageLostError as error:
                outcomes.append(f"page 0 of region 'status-3-thread-{index}-'" in str(error))

    threads = [threading.Thread(target=touch, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert outcomes == [True] * 160


def test_a_thread_that_threading_did_not_start(node, needs_fake):
    a, outcomes = lost(node, "bare"), []

    def touch():
        try:
            a.sum()
            outcomes.append("nothing")
        except dsm.PageLostError:
            outcomes.append("raised")

    _thread.start_new_thread(touch, ())
    wait_until(lambda: outcomes)
    assert outcomes == ["raised"]


def test_check_raises_what_is_pending(node, needs_fake):
    a = lost(node, "check")
    node.check()
    with pytest.raises(dsm.PageLostError):
        a[0]
        node.check()
    node.check()


#: atoi(address) as the body of a native thread: pthread_create passes its one argument first.
NATIVE = """
import ctypes, dsm, threading, time
def touch(a):
    libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
    body = ctypes.cast(libc.atoi, ctypes.c_void_p)
    libc.pthread_create(ctypes.byref(thread), None, body, ctypes.c_void_p(a.ctypes.data))
    for _ in range(3000):
        time.sleep(0.01)
node = dsm.attach()
a = node.array("status-3-native", 10)
"""


def test_a_native_threads_error_is_raised_in_the_only_python_thread(run_worker, needs_fake):
    result = run_worker(NATIVE + "touch(a)", timeout=20)
    assert result.returncode == 1
    assert "PageLostError: page 0 of region 'status-3-native'" in result.stderr


def test_a_native_threads_error_ends_a_process_of_many_python_threads(run_worker, needs_fake):
    result = run_worker(
        NATIVE + "threading.Thread(target=time.sleep, args=(30,), daemon=True).start(); touch(a)"
    )
    assert result.returncode == -signal.SIGBUS, result.stderr
    lines = [line for line in result.stderr.splitlines() if "dsm:" in line]
    assert len(lines) == 1
    assert "PageLostError" in lines[0] and "status-3-native" in lines[0]


def test_a_segmentation_fault_elsewhere_is_one(run_worker):
    result = run_worker("import ctypes, dsm; dsm.attach(); ctypes.string_at(16)")
    assert result.returncode == -signal.SIGSEGV


def test_faulthandler_enabled_later_does_not_take_over(run_worker):
    result = run_worker(
        """
import dsm, faulthandler, signal
node = dsm.attach()
faulthandler.enable()
a = node.array(None, 100_000)
a[:] = 1
faulthandler.disable()
b = node.array(None, 100_000)
b[:] = 2
signal.signal(signal.SIGSEGV, signal.SIG_DFL)
c = node.array(None, 100_000)
c[:] = 3
print(a.sum() + b.sum() + c.sum())
"""
    )
    assert (result.stdout, result.returncode) == ("600000.0\n", 0), result.stderr


def test_faulthandler_still_reports_other_faults(run_worker):
    result = run_worker(
        "import ctypes, dsm, faulthandler; dsm.attach(); faulthandler.enable(); ctypes.string_at(16)"
    )
    assert result.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in result.stderr


def test_touching_after_the_end_of_the_node_never_crashes(run_worker):
    result = run_worker(
        """
import dsm, numpy as np
with dsm.attach() as node:
    a = node.array(None, (100, 1000))
    a[:] = 1
    view = a[::-3, 5:7]
uses = [lambda: view.sum(), lambda: a.fill(0), lambda: np.linalg.norm(a), lambda: np.matmul(a, a.T)]
for use in [*uses, lambda: a.tobytes(), lambda: np.add(a, 1)]:
    try:
        use()
        print("nothing")
    except dsm.ClosedError as error:
        print("closed")
"""
    )
    assert (result.stdout, result.returncode) == ("closed\n" * 6, 0), result.stderr


def test_an_array_used_at_the_end_of_the_interpreter(run_worker):
    result = run_worker(
        """
import atexit, dsm
atexit.register(lambda: print("sum", a.sum()))  # runs after dsm's own, which was registered later
node = dsm.attach()
a = node.array(None, 10_000)
"""
    )
    assert result.returncode == 0
    assert "region" in result.stderr and "closed its node" in result.stderr


def test_lost_pages_read_as_nan_where_the_error_is_ignored(node, needs_fake):
    a = lost(node, "poison")
    value = np.zeros(1)
    with pytest.raises(dsm.PageLostError):
        np.copyto(value, a[:1])
    assert np.isnan(value[0]) or value[0] == 0


TRACED = """
import dsm, faulthandler, sys

def called():
    return 1

faulthandler.dump_traceback_later(20, exit=True)
node = dsm.attach()
node.check()
array = node.array("gone", 100000)
node.destroy(array)
try:
    array.sum()
except dsm.ClosedError:
    pass
sys.settrace(lambda frame, event, argument: None)
print(called())
"""


def test_a_debugger_or_coverage_goes_on_behind_a_check(run_worker):
    """CPython 3.11 looks for an exception for ever at a traced function once one was cleared."""
    done = run_worker(TRACED)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_an_interrupt_that_comes_while_an_error_is_taken_away_is_all_that_is_raised():
    """It comes first; what was to take the place of the error must not stay behind."""
    interrupted = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        while interrupted < 300:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-5))
                raising._take_pending_away()
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    signal.pthread_sigmask(signal.SIG_BLOCK, [])  # CPython looks for signals here, too
                pytest.fail("the interrupt was lost")
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.signal(signal.SIGALRM, before)
