"""Taking access away: acknowledged only when it is gone."""

from __future__ import annotations

import pytest


def test_after_the_acknowledgement_the_page_traps(run):
    run("""
        node = Node(); r = node.region(pages=16)
        with running(node) as manager:
            r.bytes[:] = 1
            manager.log()
            manager.lower(1, 4, 4, _native.READ)
            assert list(r.applied()) == [3] * 4 + [1] * 4 + [3] * 8
            manager.lower(1, 6, 1, _native.NONE)
            assert list(r.applied()) == [3] * 4 + [1, 1, 0, 1] + [3] * 8
            assert (r.bytes[: 6 * PAGE] == 1).all() and manager.log() == []
            r.bytes[5 * PAGE] = r.bytes[6 * PAGE] = 2
            assert [event[2:5:2] for event in manager.log()] == [[2, 5], [2, 6]]
            counters, _ = manager.statistics()
            manager.lower(1, 0, 16, _native.NONE)
            assert not r.applied().any()
            assert manager.statistics()[0]["mprotects"] == counters["mprotects"] + 1
    """)


def test_only_what_is_above_the_level_is_lowered(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node) as manager:
            for start, count, level in [(0, 10, 1), (10, 10, 3), (25, 5, 3), (30, 5, 1)]:
                getattr(manager, "raise")(1, start, count, level)
            _native.region_apply(1, 0, 64)
            manager.lower(1, 5, 22, _native.READ)
            assert list(r.applied()) == [1] * 20 + [0] * 5 + [1] * 2 + [3] * 3 + [1] * 5 + [0] * 29
    """)


@pytest.mark.parametrize(
    ("pages", "count", "takes"),
    [(4, 3, "toggle(1, 4000)"), (48, 2, "toggle_runs(1, 600)")],
    ids=["a range", "runs"],
)
def test_no_write_after_the_acknowledgement_while_threads_keep_faulting(run, pages, count, takes):
    run(f"""
        node = Node(workers=2); r = node.region(pages={pages})
        manager = node.manager()
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        node.worker(manager, 0 if child else 1)
        stop = threading.Event()
        def hammer(word):
            while not stop.is_set():
                helper.bounce(r.address, {pages}, PAGE, word, 50, word, 1)
        threads = [threading.Thread(target=hammer, args=(1 + i + 4 * (child == 0),)) for i in range({count})]
        for thread in threads:
            thread.start()
        if child == 0:
            os.close(go[1])
            os.read(go[0], 1)
            stop.set()
            for thread in threads:
                thread.join()
            os._exit(0)
        assert manager.{takes} == 0
        os.close(go[0]); os.close(go[1])
        stop.set()
        for thread in threads:
            thread.join()
        assert os.waitpid(child, 0)[1] == 0
        manager.close()
    """)


def test_closing_while_threads_fault_never_shows_another_memory(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node, worker={"error_pause_ns": 0}) as manager:
            r.frames[:] = 7
            getattr(manager, "raise")(1, 0, 64, _native.WRITE)
            stop = threading.Event()
            def errors():
                while not stop.is_set():
                    if (error := _native.error_take()) is not None:
                        _native.error_done(error)
                    else:
                        os.sched_yield()
            watcher = threading.Thread(target=errors)
            watcher.start()
            other = []
            def touch():
                while not stop.is_set():
                    other.append(helper.count_other(r.address, 64, PAGE, 7, 255))
            threads = [threading.Thread(target=touch) for _ in range(3)]
            for thread in threads:
                thread.start()
            rounds = 0
            while rounds < 2000 or len(other) <= 50:  # who has the processor is not ours to say
                _native.region_close(1)
                r.map()
                rounds += 1
            stop.set()
            for thread in [*threads, watcher]:
                thread.join()
            assert sum(other) == 0
    """)


def test_more_commands_than_the_ring_holds_become_a_sweep(run):
    run("""
        node = Node(); r = node.region(pages=3000); other = node.region(pages=8, number=2)
        with running(node, around=3000) as manager:
            r.bytes[:: PAGE] = 1; other.bytes[0] = 1
            assert (r.applied() == 3).all()
            for level in (_native.READ, _native.NONE):  # a stopped worker obeys nothing: the ring overflows
                assert manager.lower_each_while_stopped(1, level, os.getpid()) == 3000
                assert (r.applied() == level).all() and (other.applied() == 3).all()
            r.bytes[100 * PAGE] = 1
            manager.lower(1, 100, 1, 0)
            assert r.applied()[100] == 0
    """)


def test_a_stopped_worker_obeys_when_it_goes_on_and_others_at_once(run):
    run("""
        node = Node(workers=2); r = node.region(pages=8)
        manager = node.manager()
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            node.worker(manager, 1)
            r.bytes[:] = 1
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            r.bytes[0] = 2
            os._exit(0)
        os.read(ready[0], 1)
        node.worker(manager)
        r.bytes[1] = 1
        os.kill(child, signal.SIGSTOP)
        until(lambda: "T (stopped)" in open(f"/proc/{child}/status").read())
        lowered = threading.Thread(target=manager.lower, args=(1, 0, 8, 0))
        lowered.start()
        until(lambda: not r.applied(0).any())
        lowered.join(0.05)
        assert lowered.is_alive() and r.applied(1).all()
        os.kill(child, signal.SIGCONT)
        lowered.join()
        assert not r.applied(1).any()
        os.write(go[1], b"x")
        assert os.waitpid(child, 0)[1] == 0
        manager.close()
    """)


def test_revocations_while_nobody_holds_the_interpreter(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node, around=8) as manager:
            stop = threading.Event()
            def touch():
                while not stop.is_set():
                    helper.touch(r.address, 64, PAGE, 1, 4, 0, 0)
            thread = threading.Thread(target=touch)
            thread.start()
            for i in range(300):
                manager.lower(1, i % 60, 4, i % 2)
            stop.set()
            thread.join()
            manager.lower(1, 0, 64, 0)
            assert not r.applied().any()
    """)


@pytest.mark.parametrize("shift", [12, 16])
def test_pages_bounce_between_two_nodes_and_nothing_is_lost(run, shift):
    run(f"""
        import bounce
        bounce.play(helper, pages=6, shift={shift}, workers=2, threads=2, rounds=6000)
    """)
