"""Release consistency on real managers and workers over loopback TCP: programs without data races."""

from __future__ import annotations

import pytest

import release_programs as programs
from dsm.errors import UsageError

HOMES = ["first-touch", "block", "cyclic", 0]


def test_no_increment_under_a_lock_is_lost(cluster):
    assert set(cluster.all(programs.increments, 60)) == {60 * len(cluster.workers)}


def test_bytes_of_many_writers_in_one_page_are_merged(cluster):
    cluster.all(programs.own_columns, 10)


def test_blocks_that_change_hands_at_barriers_are_seen(cluster):
    cluster.all(programs.rotating_blocks, 12, 40)


def test_a_home_follows_its_only_writer_and_nothing_is_lost(cluster):
    cluster.all(programs.sole_writer, 10)


def test_a_record_under_a_lock_is_always_whole(cluster):
    cluster.all(programs.handed_over, 40)


def test_who_sees_an_atomic_sees_what_was_written_before_it(cluster):
    cluster.all(programs.published, 20)


@pytest.mark.parametrize("page_size", [8192, 65536, 2 << 20])
def test_every_page_size_and_placement(four, page_size):
    for home in HOMES:
        four.all(programs.own_columns, 2, page_size, home)
        four.workers[0].call(_destroy, "columns")


def test_a_program_moves_homes(four):
    results = four.all(programs.rehomed, 40)
    before, _, after = results[0]
    assert before == [0] * 40 and after == [1] * 20 + [0] * 20
    assert [moved for _, moved, _ in results] == [0, 0, 0, 20]


def test_untouched_pages_have_no_home_yet(four):
    assert set().union(*four.all(programs.untouched)) == {-1}


def test_homes_move_only_under_release(four):
    with pytest.raises(UsageError, match='homes move in regions with consistency="release"; fixed has "seq'):
        four.workers[0].call(programs.rehome_refused)


def test_a_thread_that_holds_a_pin_is_told_not_to_acquire(four):
    said = four.workers[0].call(programs.acquires_in_a_pin)
    assert "has pinned pages" in said and "end the pin first" in said


def _destroy(node, name):
    node.destroy(name)
