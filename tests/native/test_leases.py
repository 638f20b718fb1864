"""Access that ends by itself, whatever has become of the manager."""

from __future__ import annotations

#: Time stands still until a test sets it, so that nothing depends on what is done within a lease's time.
BOUND = """
            began = time.monotonic_ns()
            helper.set_clock(began)
            def lease(manager, page, count, seconds):
                end = began + int(seconds * 1e9)
                manager.lease(1, page, count, end)
                return end
            def set_clock(ns):
                helper.set_clock(ns)
                os.eventfd_write(node.nudges[0], 1)  # who sleeps does not see that
            def ends(page):
                until(lambda: not r.applied()[page] & 3, what="the lease ends")
"""


def test_what_is_mapped_under_a_lease_ends_with_it(run):
    run(
        f"""
        node = Node(); r = node.region(pages=16, leased=True)
        with running(node) as manager:
            {BOUND}
            early, late = lease(manager, 0, 4, 0.5), lease(manager, 4, 4, 3.0)
            getattr(manager, "raise")(1, 0, 8, _native.READ)
            assert r.bytes[: 8 * PAGE].sum() == 0
            assert list(r.applied()) == [1] * 8 + [0] * 8
            set_clock(early - 2_000_000)  # more than an eighth of the guard
            for page in (7, 6):  # between two commands the service thread looks at leases
                manager.lower(1, page, 1, _native.NONE)
            assert list(r.applied()) == [1] * 6 + [0] * 10
            set_clock(early)
            ends(3)
            assert list(r.applied()) == [0] * 4 + [1] * 2 + [0] * 10
            set_clock(late)
            ends(5)
            assert manager.log() == []
    """,
        preload=True,
    )


def test_it_ends_while_the_manager_is_stopped_and_nobody_wakes_the_service_thread(run):
    run(
        f"""
        node = Node(); r = node.region(pages=4, leased=True)
        with running(node) as manager:
            {BOUND}
            end = lease(manager, 0, 4, 0.5)
            getattr(manager, "raise")(1, 0, 4, _native.READ)
            assert r.bytes[0] == 0
            os.kill(manager.pid, signal.SIGSTOP)
            helper.set_clock(0)
            ends(0)
            assert end <= time.monotonic_ns() + 2_000_000
            os.kill(manager.pid, signal.SIGCONT)
    """,
        preload=True,
    )


def test_a_lease_that_is_over_counts_for_nothing(run):
    run(
        f"""
        node = Node(); r = node.region(pages=4, leased=True)
        with running(node) as manager:
            {BOUND}
            lease(manager, 0, 4, 0)
            getattr(manager, "raise")(1, 0, 4, _native.READ)
            _native.region_apply(1, 0, 4)
            assert not r.applied().any()
            r.bytes[: 3 * PAGE : PAGE] = 1  # asks, and gets them for writing: that has no end
            write = _native.OP_FAULT_WRITE
            assert [event[2:5:2] for event in manager.log()] == [[write, 0], [write, 1], [write, 2]]
            set_clock(began + 10**9)
            for page in (1, 2):  # between two commands the service thread looks at leases
                manager.lower(1, page, 1, _native.NONE)
            assert list(r.applied()) == [3, 0, 0, 0]
    """,
        preload=True,
    )


def test_a_page_that_was_renewed_stays_and_one_that_was_taken_for_writing_too(run):
    run(
        f"""
        node = Node(); r = node.region(pages=4, leased=True)
        with running(node) as manager:
            {BOUND}
            first = lease(manager, 0, 4, 0.5)
            getattr(manager, "raise")(1, 0, 4, _native.READ)
            assert r.bytes[: 4 * PAGE].sum() == 0
            renewed = lease(manager, 1, 1, 0.8)
            getattr(manager, "raise")(1, 2, 1, _native.WRITE)
            set_clock(first)
            ends(3)  # the last one
            assert list(r.applied()) == [0, 1, 1, 0]
            set_clock(renewed)
            ends(1)
            assert r.applied()[2] == 1
    """,
        preload=True,
    )


def test_a_later_lease_does_not_hide_an_earlier_one(run):
    run(
        f"""
        node = Node(); r = node.region(pages=3, leased=True)
        with running(node) as manager:
            {BOUND}
            long = lease(manager, 0, 1, 2.5)
            getattr(manager, "raise")(1, 0, 1, _native.READ)
            assert r.bytes[0] == 0
            short = lease(manager, 2, 1, 0.5)
            getattr(manager, "raise")(1, 2, 1, _native.READ)
            assert r.bytes[2 * PAGE] == 0
            set_clock(short)
            ends(2)
            assert r.applied()[0] == 1
            set_clock(long)
            ends(0)
    """,
        preload=True,
    )


def test_late_access_is_counted(run):
    run(
        f"""
        node = Node(); r = node.region(pages=2, leased=True)
        with running(node) as manager:
            {BOUND}
            end = lease(manager, 0, 2, 0.5)
            getattr(manager, "raise")(1, 0, 2, _native.READ)
            assert r.bytes[0] == 0
            set_clock(end + 400_000_000)  # as after a stop
            ends(0)
            until(lambda: manager.statistics()[0]["lease_late_ns"] == 400_000_000 - 10_000_000)
    """,
        preload=True,
    )


def test_words_are_copied_whole(run):
    run("""
        node = Node(); r = node.region(pages=1)
        frame = r.frames.data
        _native.words_in(frame, memoryview(b"x" + bytes(range(256)) * 16)[1:])
        assert bytes(_native.words_out(frame)) == bytes(range(256)) * 16
    """)
