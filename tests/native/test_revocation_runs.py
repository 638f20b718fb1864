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


def test_a_worker_that_dies_between_is_not_waited_for(run):
    run("""
        from dsm.manager.frames import Frames
        from dsm.manager.pager import SignalPager
        from dsm.types import Region, RegionOptions
        node = Node(workers=2); r = node.region(pages=32)
        board = _native.Board(node.node_fd, node.bell_fd)
        for worker in (0, 1):
            board.add(worker, node.boards[worker], node.nudges[worker])
        done = []
        pager = SignalPager(board, done.append)
        frames = Frames(Region(1, RegionOptions(nbytes=32 * PAGE), r.address, (0,)))
        pager.add_region(frames)
        for worker in (0, 1):
            pager.map_region(1, worker, r.applied_fds[worker])
            os.pwrite(r.applied_fds[worker], bytes([3]) * 32, 0)
        runs = np.array([[page, 1] for page in range(0, 32, 2)])
        pager.raise_(1, 0, 32, 3, -1)
        pager.lower_runs(1, runs, 1, 77)
        assert list(os.pread(frames.wanted_fd, 32, 0)) == [1, 3] * 16 and done == []
        assert pager.obeying() == {77: (0, 1)}
        pager.acknowledged(0, 1)
        assert done == []
        pager.worker_gone(1)
        assert done == [77]
        pager.lower_runs(1, np.empty((0, 2), np.int64), 1, 78)
        assert done == [77, 78]
        board.close()
    """)


def test_a_worker_that_is_just_changing_a_page_is_asked(run):
    run("""
        node = Node(); r = node.region(pages=32)
        board = _native.Board(node.node_fd, node.bell_fd)
        board.add(0, node.boards[0], node.nudges[0])
        tables = _native.Tables(board, 1, 32, r.wanted_fd)
        tables.add(0, r.applied_fds[0])
        for page in range(32):
            os.pwrite(r.applied_fds[0], bytes([_native.LOCKED]), page)
            for level in (_native.NONE, _native.READ):
                assert len(tables.lower_runs(np.array([[0, 1], [2, 30]]), level)) == (page != 1)
                assert len(tables.lower(0, 32, level)) == 1
            os.pwrite(r.applied_fds[0], bytes([_native.READ | _native.PINNED]), page)
            assert len(tables.lower_runs(np.array([[0, 32]]), _native.READ)) == 0
            assert len(tables.lower_runs(np.array([[0, 32]]), _native.NONE)) == 1
            os.pwrite(r.applied_fds[0], bytes([0]), page)
        board.close()
    """)


def test_a_page_between_the_runs_that_somebody_changes_is_waited_for(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node, around=64) as manager:
            r.bytes[::PAGE] = 1
            manager.lower(1, 8, 16, _native.NONE)
            os.pwrite(r.applied_fds[0], bytes([_native.LOCKED]), 17)  # as a thread that is about to map it
            runs = [[page, 1] for page in (0, 2, 4, 6, 30, 32)]
            lowered = threading.Thread(target=manager.lower_runs, args=(1, runs, _native.READ))
            lowered.start()
            until(lambda: r.applied()[6] == 1)
            lowered.join(0.05)
            assert lowered.is_alive() and r.applied()[30] == 3
            os.pwrite(r.applied_fds[0], bytes([0]), 17)
            lowered.join()
            assert r.applied()[30] == 1 and r.applied()[31] == 3
    """)
