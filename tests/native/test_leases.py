"""Access that ends by itself, whatever has become of the manager."""

from __future__ import annotations

BOUND = """
            def lease(manager, page, count, seconds):
                end = time.monotonic_ns() + int(seconds * 1e9)
                manager.lease(1, page, count, end)
                return end
            def ends(page):
                until(lambda: not r.applied()[page] & 3, 5, "the lease ends")
                return time.monotonic_ns()
"""


def test_what_is_mapped_under_a_lease_ends_with_it(run):
    run(f"""
        node = Node(); r = node.region(pages=16, leased=True)
        with running(node) as manager:
            {BOUND}
            early, late = lease(manager, 0, 4, 1.0), lease(manager, 4, 4, 3.0)
            getattr(manager, "raise")(1, 0, 8, _native.READ)
            assert r.bytes[: 8 * PAGE].sum() == 0
            assert list(r.applied()) == [1] * 8 + [0] * 8
            assert early <= ends(0) and list(r.applied()[4:8]) == [1] * 4
            assert late <= ends(4) and manager.log() == []
    """)


def test_it_ends_while_the_manager_is_stopped(run):
    run(f"""
        node = Node(); r = node.region(pages=4, leased=True)
        with running(node) as manager:
            {BOUND}
            end = lease(manager, 0, 4, 1.0)
            getattr(manager, "raise")(1, 0, 4, _native.READ)
            assert r.bytes[0] == 0
            os.kill(manager.pid, signal.SIGSTOP)
            assert end <= ends(0)
            os.kill(manager.pid, signal.SIGCONT)
    """)


def test_a_lease_that_is_over_counts_for_nothing(run):
    run(f"""
        node = Node(); r = node.region(pages=4, leased=True)
        with running(node) as manager:
            {BOUND}
            lease(manager, 0, 4, -1)
            getattr(manager, "raise")(1, 0, 4, _native.READ)
            _native.region_apply(1, 0, 4)
            assert not r.applied().any()
            r.bytes[1] = 1  # asks, and gets it for writing: that has no end
            assert manager.log()[0][2:5:2] == [_native.OP_FAULT_WRITE, 0]
            time.sleep(0.1)
            assert list(r.applied()) == [3, 0, 0, 0]
    """)


def test_a_page_that_was_renewed_stays_and_one_that_was_taken_for_writing_too(run):
    run(f"""
        node = Node(); r = node.region(pages=4, leased=True)
        with running(node) as manager:
            {BOUND}
            lease(manager, 0, 4, 1.0)
            getattr(manager, "raise")(1, 0, 4, _native.READ)
            assert r.bytes[: 4 * PAGE].sum() == 0
            renewed = lease(manager, 1, 1, 1.8)
            getattr(manager, "raise")(1, 2, 1, _native.WRITE)
            ends(0)
            assert list(r.applied()) == [0, 1, 1, 0]
            assert renewed <= ends(1) and r.applied()[2] == 1
    """)


def test_a_later_lease_does_not_hide_an_earlier_one(run):
    run(f"""
        node = Node(); r = node.region(pages=3, leased=True)
        with running(node) as manager:
            {BOUND}
            long = lease(manager, 0, 1, 2.5)
            getattr(manager, "raise")(1, 0, 1, _native.READ)
            assert r.bytes[0] == 0
            time.sleep(0.1)  # the service thread sleeps until then
            short = lease(manager, 2, 1, 1.0)
            getattr(manager, "raise")(1, 2, 1, _native.READ)
            assert r.bytes[2 * PAGE] == 0
            assert short <= ends(2) < long <= ends(0)
    """)


def test_late_access_is_counted(run):
    run(f"""
        node = Node(); r = node.region(pages=2, leased=True)
        with running(node) as manager:
            {BOUND}
            end = lease(manager, 0, 2, 1.0)
            getattr(manager, "raise")(1, 0, 2, _native.READ)
            assert r.bytes[0] == 0
            stopper = os.fork()
            if stopper == 0:
                os.kill(os.getppid(), signal.SIGSTOP)
                until(lambda: time.monotonic_ns() > end + 400_000_000)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.waitpid(stopper, 0)
            ends(0)
            assert manager.statistics()[0]["lease_late_ns"] > 300_000_000
    """)


def test_words_are_copied_whole(run):
    run("""
        node = Node(); r = node.region(pages=1)
        frame = r.frames.data
        _native.words_in(frame, memoryview(b"x" + bytes(range(256)) * 16)[1:])
        assert bytes(_native.words_out(frame)) == bytes(range(256)) * 16
    """)
