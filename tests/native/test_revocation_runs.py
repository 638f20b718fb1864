"""Taking access to many runs of pages away at once."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("count", [3, 4, 5, 40])
@pytest.mark.parametrize("level", [0, 1])
def test_exactly_the_runs_are_lowered(run, count, level):
    run(f"""
        node = Node(); r = node.region(pages=1000)
        with running(node, around=1000) as manager:
            r.bytes[::PAGE] = 1
            runs = [[20 * i + 3, 1 + i % 9] for i in range({count})]
            expected = np.full(1000, 3)
            for page, length in runs:
                expected[page : page + length] = {level}
            assert len(manager.lower_runs(1, runs, {level})) == 1
            assert list(r.applied()) == list(expected) == list(r.wanted)
            assert manager.lower_runs(1, runs, {level}) == []
    """)


def test_pages_between_the_runs_keep_what_they_may_and_lose_what_was_lowered_before(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node, around=64) as manager:
            r.bytes[::PAGE] = 1
            getattr(manager, "raise")(1, 0, 64, _native.WRITE)
            assert manager.lower_runs(1, [[i, 1] for i in range(0, 64, 2)], _native.READ)
            assert list(r.applied()) == [1, 3] * 32
            assert manager.lower_runs(1, [[i, 1] for i in range(1, 64, 4)], _native.NONE)
            assert list(r.applied()) == [1, 0, 1, 3] * 16
    """)


def test_only_workers_that_may_have_more_are_asked(run):
    run("""
        node = Node(workers=2); r = node.region(pages=100)
        manager = node.manager()
        node.worker(manager)
        r.bytes[: 50 * PAGE : PAGE] = 1
        assert manager.lower_runs(1, [[i, 1] for i in range(50, 100, 2)], 0) == []
        asked = manager.lower_runs(1, [[i, 1] for i in range(0, 100, 2)], 0)
        assert [worker for worker, _ in asked] == [0]
        assert list(r.applied(0)) == [0, 3] * 25 + [0] * 50
        manager.close()
    """)


def test_runs_outside_the_region_are_refused_and_nothing_is_lowered(run):
    run("""
        node = Node(); r = node.region(pages=10)
        board = _native.Board(node.node_fd, node.bell_fd)
        tables = _native.Tables(board, 1, 10, r.wanted_fd)
        tables.raise_(0, 10, _native.WRITE)
        for runs in ([[0, 2], [9, 2]], [[0, 2], [10, 1]], [[0, 2], [3, -1]], [[-1, 1]]):
            try:
                tables.lower_runs(np.array(runs), 0)
            except OSError as error:
                assert error.errno == errno.EINVAL
            else:
                raise AssertionError(runs)
            assert (r.wanted == 3).all()
        assert tables.lower_runs(np.empty((0, 2), np.int64), 0) == []
    """)


def test_no_write_after_the_acknowledgement_while_threads_write(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node, around=16) as manager:
            stop = threading.Event()
            def touch():
                while not stop.is_set():
                    helper.touch(r.address, 64, PAGE, 1, 4, 0, 0)
            threads = [threading.Thread(target=touch) for _ in range(2)]
            for thread in threads:
                thread.start()
            for i in range(300):
                manager.lower_runs(1, [[page, 1 + i % 2] for page in range(i % 3, 60, 3 + i % 5)], i % 2)
            stop.set()
            for thread in threads:
                thread.join()
            manager.lower_runs(1, [[page, 1] for page in range(0, 64, 2)], 0)
            assert not r.applied()[::2].any()
    """)
