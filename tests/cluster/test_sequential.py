"""Sequential consistency on real managers and workers over loopback TCP."""

from __future__ import annotations

import pytest

import programs


def test_no_increment_under_a_lock_is_lost(cluster):
    assert set(cluster.all(programs.increment_under_lock, 100)) == {100 * len(cluster.workers)}


def test_own_words_of_shared_pages_keep_their_values(cluster):
    cluster.all(programs.own_columns, 1, 300, 4096)


def test_atomic_adds_are_all_counted(cluster):
    assert set(cluster.all(programs.add_many, 100)) == {100 * len(cluster.workers)}


def test_ranges_change_as_a_whole_under_locks(cluster):
    cluster.all(programs.random_walk, 1, 40)


@pytest.mark.parametrize("page_size", [4096, 8192, 65536, 2 << 20])
def test_every_page_size_moves(four, page_size):
    n = 3 * page_size + 5
    for home in ("first-touch", "block", "cyclic", 1):
        assert set(four.all(programs.neighbours, n, page_size, home)) == {n * (n - 1) // 2}
        four.workers[0].call(_destroy, "block")


def _destroy(node, name):
    node.destroy(name)


def test_fresh_pages_hold_the_fill_value_on_every_node(four):
    four.all(programs.fill_pattern, 3)


def test_copies_in_opposite_directions_do_not_livelock(two):
    values = two.all(programs.opposite_copies, 20, timeout=60)
    assert values[0] == values[1]
    assert set(values[0]) <= {1, 2}


def test_pinned_pages_serve_system_calls(cluster):
    cluster.all(programs.write_then_files)


def test_prefetched_pages_are_here(two):
    during, afterwards = two.all(programs.prefetched)[-1]
    assert during >= 300_000 * 8 // 4096
    assert afterwards == 0


def test_touching_a_destroyed_array_raises_everywhere(four):
    for message in four.all(programs.touch_after_destroy):
        assert message is not None and "doomed" in message
