"""The manager's side: waiting, and what is reported."""

from __future__ import annotations

ALONE = """
        node = Node()
        board = _native.Board(node.node_fd, node.bell_fd)
        board.add(0, node.boards[0], node.nudges[0])
        epoll = select.epoll()
        def wait(timeout_ns=5_000_000_000, spin_ns=0):
            return board.wait(epoll.fileno(), spin_ns, timeout_ns)
"""


def test_a_wait_ends_with_its_time(run):
    run(
        ALONE
        + """
        MS = 1_000_000
        for timeout, spin in [(0, 0), (MS // 3, 0), (20 * MS, 0), (20 * MS, 5 * MS), (MS, 3_600_000 * MS)]:
            for _ in range(5):
                start = time.monotonic_ns()
                assert wait(timeout, spin) == ([], [])
                assert timeout <= time.monotonic_ns() - start
    """
    )


def test_descriptors_are_reported_and_the_bell_is_not(run):
    run(
        ALONE
        + """
        reading, writing = os.pipe()
        epoll.register(reading, select.EPOLLIN)
        epoll.register(writing, select.EPOLLOUT)
        assert wait() == ([], [(writing, select.EPOLLOUT)])
        os.write(writing, b"x")
        os.eventfd_write(node.bell_fd, 1)
        assert sorted(wait()[1]) == [(reading, select.EPOLLIN), (writing, select.EPOLLOUT)]
        epoll.unregister(writing)
        os.read(reading, 1)
        for _ in range(3):  # the bell alone: wakes, finds nothing, sleeps again
            os.eventfd_write(node.bell_fd, 1)
            assert wait(10_000_000) == ([], [])
    """
    )


def test_a_worker_wakes_a_sleeping_manager_and_a_spinning_one(run):
    run(
        ALONE
        + """
        node.worker(None)
        for spin in (0, 20_000_000):
            for _ in range(20):
                timer = threading.Timer(0.005, _native.call_begin, (20, 1, 2, 3, 4))
                timer.start()
                events, ready = wait(5_000_000_000, spin)
                assert events[0] == 0 and events[2:8] == [20, 1, 2, 3, 4, 0] and ready == []
                timer.join()
                board.complete(0, events[1], 1, 2**64 - 1)
                assert board.unapplied(0, events[1])
                assert _native.call_wait(events[1], 0) == (1, 2**64 - 1)
                _native.call_end(events[1])
                assert not board.unapplied(0, events[1])
    """
    )


def test_what_was_posted_before_a_socket_was_written_to_is_reported_no_later(run):
    """Both happen while a spinning manager has looked at the slots, and not yet at its sockets."""
    run(
        ALONE
        + """
        node.worker(None)
        reading, writing = os.pipe()
        epoll.register(reading, select.EPOLLIN)
        @ctypes.CFUNCTYPE(None)
        def post_and_write():
            _native.call_post(20, 5)
            os.write(writing, b"x")
        for _ in range(10):  # with nothing else to report, and behind something
            assert _native.call_post(20, 4)
            helper.before_next_epoll(post_and_write)
            seen = []
            while True:
                events, ready = wait(spin_ns=5_000_000_000)
                seen += events[3::8]
                if ready:
                    break
            assert seen == [4, 5] and ready == [(reading, select.EPOLLIN)]
            os.read(reading, 1)
    """,
        preload=True,
    )


def test_a_signal_ends_a_wait(run):
    run(
        ALONE
        + """
        got = []
        signal.signal(signal.SIGALRM, lambda *_: got.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)  # again: one may come before it waits
        assert wait(-1) == ([], [])
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert got
    """
    )


def test_what_finds_no_room_comes_with_the_next_wait(run):
    run(
        ALONE
        + """
        small = _native.Board(node.node_fd, node.bell_fd, max_events=3, max_ready=2)
        board.close()
        small.add(0, node.boards[0], node.nudges[0])
        board = small
        node.worker(None)
        slots = [_native.call_begin(20, i) for i in range(10)]
        pipes = [os.pipe() for _ in range(5)]
        for reading, writing in pipes:
            epoll.register(reading, select.EPOLLIN)
            os.write(writing, b"x")
        seen, read = [], set()
        while len(seen) < 10 or len(read) < 5:
            events, ready = wait()
            assert len(events) <= 24 and 0 < len(events) + len(ready) and len(ready) <= 2
            seen += events[3::8]
            for fd, _ in ready:
                read.add(fd)
                os.read(fd, 1)
        assert sorted(seen) == list(range(10)) and read == {reading for reading, _ in pipes}
        assert wait(0) == ([], [])
    """
    )


def test_wrong_use_is_refused(run):
    run(
        ALONE
        + """
        def fails(code, function, *arguments):
            try:
                function(*arguments)
            except OSError as error:
                assert error.errno == code, error
            else:
                raise AssertionError(function)
        fails(errno.EEXIST, board.add, 0, node.boards[0], node.nudges[0])
        fails(errno.EINVAL, board.add, 256, node.boards[0], node.nudges[0])
        fails(errno.ENOENT, board.remove, 1)
        fails(errno.EINVAL, board.add, 1, fake.memfd("short", 100), node.nudges[0])
        fails(errno.EINVAL, _native.Board, fake.memfd("short", 10), node.bell_fd)
        fails(errno.EBADF, board.wait, 999, 0, 0)
        tables = _native.Tables(board, 1, 8, fake.memfd("wanted", 8))
        fails(errno.EINVAL, tables.lower, 4, 5, 0)
        tables.add(0, fake.memfd("applied", 8))
        fails(errno.EEXIST, tables.add, 0, fake.memfd("applied", 8))
        tables.remove(0); tables.remove(0)
        board.complete(7, 0, 0); board.complete(0, 999, 0); board.complete(0, 0, 0)
        assert not board.unapplied(0, 0) and not board.unapplied(9, 0)
        tables.close(); tables.close()
        board.remove(0)
        board.close(); board.close()
    """
    )


def test_raising_and_lowering_change_only_their_pages(run):
    run(
        ALONE
        + """
        fd = fake.memfd("wanted", 16)
        tables = _native.Tables(board, 1, 16, fd)
        wanted = lambda: list(os.pread(fd, 16, 0))
        tables.raise_(2, 6, _native.READ, 4)
        assert wanted() == [0, 0, 1, 1, 1 | _native.MARK, 1, 1, 1] + [0] * 8
        tables.raise_(6, 4, _native.WRITE)
        tables.raise_(7, 2, _native.READ)
        assert wanted()[2:11] == [1, 1, 1 | _native.MARK, 1, 3, 3, 3, 3, 0]
        assert tables.lower(3, 5, _native.READ) == []
        assert wanted()[2:11] == [1, 1, 1, 1, 1, 1, 3, 3, 0]
        assert tables.lower(0, 16, _native.NONE) == []
        assert wanted() == [0] * 16
        # Only a worker that may have more is asked.
        applied = fake.memfd("applied", 16)
        tables.add(0, applied)
        for byte, level, asked in [(1, 0, 1), (1, 1, 0), (3, 1, 1), (3, 3, 0), (0x80, 3, 1), (0x40, 0, 0)]:
            os.pwrite(applied, bytes([byte]), 9)
            assert len(tables.lower(4, 8, level)) == asked, (byte, level)
            assert tables.lower(10, 6, level) == []
        assert board.statistics(0)[0]["mprotects"] == 0
    """
    )
