"""What a manager reads from the board about threads that wait."""

from __future__ import annotations


def test_waits_tell_what_and_since_when(run):
    run(
        """
        node = Node()
        board = _native.Board(node.node_fd, node.bell_fd)
        board.add(0, node.boards[0], node.nudges[0])
        started = time.monotonic_ns()
        node.worker(None)
        assert board.waits(0) == []
        call = _native.call_begin(40, 7, 1, 2, 3)
        [waiting] = board.waits(0)
        slot = waiting.slot
        assert waiting[:7] == (slot, 40, 7, 1, 2, 3, os.getpid())
        assert waiting.since == 0  # asked, but does not wait yet
        assert _native.call_wait(call, 1_000_000) is None
        first = board.waits(0)[0].since
        assert started < first <= time.monotonic_ns()
        assert _native.call_wait(call, 1_000_000) is None
        assert board.waits(0)[0].since == first  # a later slice of the same wait
        board.complete(0, slot, 0, 5)
        assert board.waits(0) == []
        assert _native.call_wait(call, -1) == (0, 5)
        _native.call_end(call)
        assert _native.call_post(41, 7)
        assert board.waits(0) == []  # nobody waits for that
        call = _native.call_begin(42, 7)
        assert board.waits(0)[0].since == 0
        board.complete(0, board.waits(0)[0].slot)
        _native.call_end(call)
        try:
            board.waits(1)
        except OSError as error:
            assert error.errno == errno.ENOENT
        else:
            raise AssertionError
        _native.worker_stop()
    """
    )
