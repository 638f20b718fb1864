"""Calls through a slot: answers, time limits, signals, running out."""

from __future__ import annotations


def test_an_answer_carries_status_and_result(run):
    run("""
        node = Node()
        with running(node) as manager:
            for a in (0, 5, 1 << 31):
                slot = _native.call_begin(20, 3, a)
                assert _native.call_wait(slot, -1) == (4, (3 << 32) + a)
                _native.call_end(slot)
    """)


def test_a_wait_ends_with_its_time_and_can_go_on(run):
    run("""
        node = Node()
        with running(node) as manager:
            slot = _native.call_begin(17, 0)
            assert _native.call_wait(slot, 0) is None
            start = time.monotonic()
            assert _native.call_wait(slot, 30_000_000) is None
            assert 0.03 <= time.monotonic() - start
            until(lambda: manager.held() == 1)
            manager.release(7, 99)
            while (answer := _native.call_wait(slot, -1)) is None:
                pass
            assert answer == (7, 99)
            _native.call_end(slot)
    """)


def test_an_answer_wakes_a_sleeping_thread_at_once(run):
    """The wait ends before its slice does: at its end a thread looks, whether it was woken or not."""
    run("""
        import support
        node = Node()
        with running(node) as manager:
            def ends_before_its_slice():
                answered = []
                slot = _native.call_begin(17, 0)
                until(lambda: manager.held() == 1)
                def answer():
                    until(lambda: support.waits_in_futex(os.getpid()))
                    answered.append(time.monotonic())
                    manager.release(0)
                thread = threading.Thread(target=answer)
                began = time.monotonic()
                thread.start()
                while _native.call_wait(slot, -1) is None:
                    pass
                ended = time.monotonic()
                thread.join()
                _native.call_end(slot)
                # Nothing is shown where the slice, of 0.1 s, was nearly over before there was an answer.
                return answered[0] - began < 0.04 and ended - answered[0] < 0.05
            until(ends_before_its_slice)
    """)


def test_a_signal_ends_a_wait(run):
    run("""
        node = Node()
        class Interrupted(Exception): pass
        def interrupt(*_): raise Interrupted
        signal.signal(signal.SIGUSR1, interrupt)
        with running(node) as manager:
            slot = _native.call_begin(17, 0)
            for pause in (0.0001, 0.05):
                try:
                    threading.Timer(pause, os.kill, (os.getpid(), signal.SIGUSR1)).start()
                    while True:
                        assert _native.call_wait(slot, -1) is None
                except Interrupted:
                    pass
    """)


def test_slots_run_out_and_come_back(run):
    run("""
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            slots = [_native.call_begin(17, 0) for _ in range(256)]
            assert sorted(slot % 256 for slot in slots) == list(range(256))
            try:
                _native.call_begin(17, 0)
            except BlockingIOError:
                pass
            else:
                raise AssertionError
            # A fault waits until there is one.
            thread = threading.Thread(target=helper.touch, args=(r.address, 1, PAGE, 1, 1, 0, 0))
            thread.start()
            until(lambda: manager.held() == 256)
            manager.release(0)
            for slot in slots:
                assert _native.call_wait(slot, -1) == (0, 0)
                _native.call_end(slot)
            thread.join()
            assert r.frames[0] == 1
    """)


def test_stopping_ends_waits_of_calls_and_faults(run):
    run("""
        node = Node(); r = node.region(pages=4)
        with running(node, silent=[2], worker={"error_pause_ns": 1000}) as manager:
            answers = []
            def call():
                slot = _native.call_begin(17, 0)
                while (answer := _native.call_wait(slot, -1)) is None:
                    pass
                answers.append(answer)
                _native.call_end(slot)
            threads = [
                threading.Thread(target=call),
                threading.Thread(target=helper.touch, args=(r.address + 2 * PAGE, 1, PAGE, 0, 1, 0, 0)),
            ]
            for thread in threads:
                thread.start()
            until(lambda: manager.held() == 2)
            _native.worker_stop()
            for thread in threads:
                thread.join()
            assert answers == [(CLOSED, 0)] and _native.error_take().status == CLOSED
    """)


def test_many_threads_call_at_once(run):
    run("""
        node = Node()
        with running(node) as manager:
            wrong = []
            def calls(a):
                for i in range(100):
                    slot = _native.call_begin(20, a, i)
                    while (answer := _native.call_wait(slot, -1)) is None:
                        pass
                    if answer != (4, (a << 32) + i):
                        wrong.append((a, i, answer))
                    _native.call_end(slot)
            threads = [threading.Thread(target=calls, args=(a,)) for a in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong
    """)


TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
thread = int(sys.argv[1])
if libc.ptrace(SEIZE, thread, None, None) or libc.ptrace(INTERRUPT, thread, None, None):
    sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
print("stopped", flush=True)
input()
libc.ptrace(DETACH, thread, None, None)
print("goes on", flush=True)
"""


def test_a_fault_and_a_call_that_outlive_a_restart_take_nothing_of_the_new_board(run):
    """One thread is kept from running (as by a debugger) while the worker is stopped and started."""
    run(
        """
        import subprocess
        program = TRACER
        memcpy = ctypes.CDLL(None).memcpy
        memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)  # children may trace us
        first = Node(); r = first.region(pages=4)
        with running(first, silent=[2], worker={"error_pause_ns": 1000}) as manager:
            old_call = _native.call_begin(17, 0)
            there = ctypes.create_string_buffer(1)
            thread = threading.Thread(target=memcpy, args=(there, r.address + 2 * PAGE, 1))
            thread.start()
            until(lambda: manager.held() == 2)
            tracer = subprocess.Popen([sys.executable, "-c", program, str(thread.native_id)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert tracer.stdout.readline() == "stopped\\n"
            _native.worker_stop()
        second = Node()
        with running(second) as manager:
            ours = [_native.call_begin(17, 0) for _ in range(2)]
            assert [slot % 256 for slot in ours] == [0, 1], "the numbers of the old fault and call"
            until(lambda: manager.held() == 2)
            tracer.communicate("\\n")
            thread.join()
            assert there.raw == b"\\xff" and _native.error_take().status == CLOSED
            assert _native.call_wait(old_call, -1) == (CLOSED, 0)
            _native.call_end(old_call)
            others = [_native.call_begin(17, 0) for _ in range(2)]
            assert [slot % 256 for slot in others] == [2, 3], "ours are still taken"
            until(lambda: manager.held() == 4)
            manager.release(7, 9)
            for slot in ours + others:
                while (answer := _native.call_wait(slot, -1)) is None:
                    pass
                assert answer == (7, 9)
                _native.call_end(slot)
        """.replace("TRACER", repr(TRACER), 1)
    )
