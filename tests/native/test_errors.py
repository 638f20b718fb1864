"""Faults that cannot be served: poison, the error for Python, and what comes after."""

from __future__ import annotations

import pytest

WATCH = """
    errors = []
    def watch():
        while True:
            select.select([node.error_fd], [], [])
            os.eventfd_read(node.error_fd)
            while (error := _native.error_take()) is not None:
                _native.error_done(error)
                errors.append(error)  # whoever sees it here finds its page trapping again
    def watching():
        threading.Thread(target=watch, daemon=True).start()
"""


def test_a_refused_page_reads_as_nan_and_its_error_names_it(run):
    run(
        WATCH
        + """
    node = Node(); r = node.region(pages=8)
    with running(node, refuse={"3": 4}) as manager:
        r.frames[:] = 1
        r.bytes[2 * PAGE]
        watching()
        assert np.isnan(r.words("f8")[3 * PAGE // 8 + 1])
        until(lambda: errors)
        [error] = errors
        assert (error.region, error.page, error.status, error.address) == (1, 3, 4, r.address + 3 * PAGE + 8)
        assert error.thread == threading.get_native_id()
        # Neighbours are untouched, and the page traps again.
        assert r.bytes[2 * PAGE] == r.bytes[4 * PAGE] == 1
        assert r.bytes[3 * PAGE] == 255
        until(lambda: len(errors) == 2)
        counters, _ = manager.statistics()
        assert counters["poisoned"] == 2
    """
    )


def test_a_page_that_is_granted_later_shows_its_frame(run):
    run(
        WATCH
        + """
    node = Node(); r = node.region(pages=8, shift=16)
    with running(node, refuse={"3": 4}) as manager:
        r.frames[:] = 1
        watching()
        address = (3 << 16) + 2 * PAGE
        assert r.bytes[address] == 255 and r.frames[address] == 1
        until(lambda: errors)
        until(lambda: r.applied()[3] == 0)
        getattr(manager, "raise")(1, 3, 1, _native.WRITE)
        r.bytes[address] += 1
        assert r.frames[address] == 2 and r.applied()[3] == _native.WRITE
    """
    )


def test_without_a_watcher_the_pause_is_bounded_and_more_poison_is_free(run):
    run("""
        node = Node(); r = node.region(pages=4000)
        with running(node, worker={"error_pause_ns": 100_000_000}) as manager:
            _native.region_close(1)
            start = time.monotonic()
            assert r.bytes[0] == 255
            assert 0.09 < time.monotonic() - start
            assert (r.bytes == 255).all()
            r.bytes[:] = 3
            error = _native.error_take()
            assert (error.region, error.page, error.status) == (1, 0, CLOSED)
            assert _native.error_take() is None  # each error is a pause
            _native.error_done(error)
            assert r.bytes[0] == 255  # mended: a new error
            assert _native.error_take().page == 0
            assert len(fake.maps()) < 100
    """)


def test_the_mark_tells_whether_what_was_read_may_be_poison(run):
    run("""
        node = Node(); r = node.region(pages=8); other = node.region(pages=4, number=2)
        with running(node, worker={"error_pause_ns": 0}, refuse={"5": 4}):
            def marks():
                return [_native.region_mark(each.address + 5000) for each in (r, other)]
            assert marks() == [0, 0] and _native.region_mark(4096) == -1
            r.bytes[: 4 * PAGE] = 1
            assert marks() == [0, 0]
            assert r.bytes[5 * PAGE] == 255 and marks() == [-1, 0]
            _native.error_done(_native.error_take())
            assert marks() == [1, 0]  # something was poisoned meanwhile
            _native.region_close(2)
            assert marks() == [1, -1]
            other.map()
            assert marks() == [1, 1]  # not as it was: in between it was closed
    """)


def test_closed_regions_are_errors_and_stay_reserved(run):
    run(
        WATCH
        + """
    node = Node(); r = node.region(pages=8)
    with running(node) as manager:
        watching()
        r.bytes[0] = 1
        _native.region_close(1)
        assert r.bytes[0] == 255 and r.frames[0] == 1
        until(lambda: errors)
        assert errors[0].status == CLOSED
        assert _native.region_find(r.address + 5) == (1, 5)
        _native.region_close(1)
        r.bytes[PAGE] = 7
        until(lambda: len(errors) == 2)
        assert r.frames[PAGE] == 0
    """
    )


def test_a_manager_that_is_killed_ends_the_wait(run):
    run(
        WATCH
        + """
    node = Node(); r = node.region(pages=8)
    manager = node.manager(silent=[5])
    node.worker(manager)
    watching()
    r.bytes[0] = 1
    waiting = threading.Thread(target=helper.touch, args=(r.address + 5 * PAGE, 1, PAGE, 0, 1, 0, 0))
    call = _native.call_begin(17, 0)
    waiting.start()
    until(lambda: manager.held() == 2)
    manager.kill()
    waiting.join()
    assert _native.call_wait(call, -1) == (LOST, 0)
    _native.call_end(call)
    until(lambda: errors)
    assert errors[0].status == LOST and _native.worker_lost()
    # What was mapped is nobody's any more, and everything is an error at once.
    until(lambda: r.bytes[0] == 255)
    assert r.bytes[6 * PAGE] == 255
    until(lambda: len(errors) >= 2)
    assert {error.status for error in errors} == {LOST}
    """
    )


def test_many_threads_in_error_at_once(run):
    run(
        WATCH
        + """
    node = Node(); r = node.region(pages=200)
    with running(node) as manager:
        watching()
        _native.region_close(1)
        assert helper.touch(r.address, 200, PAGE, 0, 200, 1, 65536) == 200 * 255
        until(lambda: len({error.thread for error in errors}) == 200)
        until(lambda: helper.touch(r.address, 1, PAGE, 0, 1, 0, 0) == 255)
    """
    )


def test_more_threads_in_error_than_can_be_told_end_the_process(run):
    ended = run(
        """
        node = Node(); r = node.region(pages=500)
        with running(node, worker={"error_pause_ns": 20_000_000_000}) as manager:
            _native.region_close(1)
            helper.touch(r.address, 500, PAGE, 0, 500, 1, 65536)
        """,
        status=-7,
    )
    assert ended.stderr.startswith("dsm: more threads than can be told")


def test_touching_while_errors_are_handed_over_never_shows_zeros(run):
    run(
        WATCH
        + """
    node = Node(); r = node.region(pages=64)
    with running(node) as manager:
        r.frames[:] = 1
        watching()
        _native.region_close(1)
        for _ in range(20):
            assert helper.touch(r.address, 64, PAGE, 0, 8, 0, 0) == 8 * 64 * 255
    """
    )


@pytest.mark.parametrize("shift", [12, 16])
def test_who_gets_a_page_sees_its_frame_though_another_thread_failed_on_it(run, shift):
    run(f"""
    node = Node(); r = node.region(pages=8, shift={shift})
    with running(node, silent=[3], worker={{"error_pause_ns": 0}}) as manager:
        r.frames[:] = 1
        address = r.address + (3 << {shift}) + (1 << {shift}) - PAGE
        def touch():
            found.append(helper.touch(address, 1, PAGE, 0, 1, 0, 0))
        found, threads = [], [threading.Thread(target=touch) for _ in range(2)]
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda: manager.held() == count)
        manager.release_first(4)
        until(lambda: found == [255])
        getattr(manager, "raise")(1, 3, 1, _native.WRITE)
        manager.release(0)
        for thread in threads:
            thread.join()
        assert found == [255, 1]
        helper.touch(address, 1, PAGE, 1, 1, 0, 0)
        r.bytes[3 << {shift}] = 7
        error = _native.error_take()
        assert error.page == 3
        _native.error_done(error)
        assert r.applied()[3] == _native.WRITE and r.frames[3 << {shift}] == 7 and manager.log()[2:] == []
    """)


def test_a_page_that_came_meanwhile_is_not_poisoned(run):
    run("""
    node = Node(); r = node.region(pages=8)
    with running(node, silent=[3], worker={"error_pause_ns": 0}) as manager:
        r.frames[:] = 1
        found = []
        def touch():
            found.append(helper.touch(r.address + 3 * PAGE, 1, PAGE, 0, 1, 0, 0))
        thread = threading.Thread(target=touch)
        thread.start()
        until(lambda: manager.held() == 1)
        getattr(manager, "raise")(1, 3, 1, _native.WRITE)
        r.bytes[3 * PAGE] = 5
        manager.release(4)
        thread.join()
        r.bytes[3 * PAGE + 1] = 6
        assert found == [5] and list(r.frames[3 * PAGE : 3 * PAGE + 3]) == [5, 6, 1]
        assert _native.error_take() is None
    """)


def test_poison_stays_away_when_its_page_was_taken_away_meanwhile(run):
    run("""
    node = Node(); r = node.region(pages=8)
    with running(node, refuse={"3": 4}, worker={"error_pause_ns": 0, "map_limit": 32}) as manager:
        r.frames[:] = 1
        assert helper.touch(r.address + 3 * PAGE, 1, PAGE, 0, 1, 0, 0) == 255
        getattr(manager, "raise")(1, 0, 8, _native.READ)
        for level in (_native.READ, _native.NONE):
            _native.region_apply(1, 0, 8)
            assert (r.bytes == 1).all() and (r.applied() == _native.READ).all()
            manager.lower(1, 0, 8, level)
            assert (r.applied() == level).all()
        assert helper.touch(r.address + 3 * PAGE, 1, PAGE, 0, 1, 0, 0) == 255
        getattr(manager, "raise")(1, 4, 1, _native.READ)
        assert r.bytes[4 * PAGE] == 1
        manager.lower(1, 0, 8, _native.NONE)  # beside poison
        getattr(manager, "raise")(1, 3, 1, _native.WRITE)
        _native.region_apply(1, 3, 1)
        assert r.bytes[3 * PAGE] == 1
        while (error := _native.error_take()) is not None:
            _native.error_done(error)
        assert r.applied()[3] == _native.WRITE
    """)


def test_everything_closes_whoever_notices_that_the_manager_is_gone(run):
    run(
        WATCH
        + """
    node = Node(); r = node.region(pages=8)
    manager = node.manager()
    node.worker(manager, spin_ns=10_000_000_000)  # the service thread does not sleep: it cannot be woken
    watching()
    r.bytes[:] = 1
    manager.lower(1, 0, 1, _native.READ)
    helper.set_clock(time.monotonic_ns())  # nothing comes that it does once a second
    manager.kill()
    assert _native.worker_lost()
    until(lambda: _native.region_mark(r.address) == -1, what="it is closed")
    helper.set_clock(0)
    assert r.bytes[0] == 255
    """,
        preload=True,
    )
