"""Times of synchronization objects: they only grow, each object has its own."""

from hypothesis import given
from hypothesis import strategies as st

from dsm.sync.times import ObjectTimes

TIMES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


def entry(time, node):
    return time[node] if node < len(time) else 0


def test_an_object_that_nobody_released_has_no_time():
    assert ObjectTimes().of(1) == ()


@given(st.lists(TIMES, min_size=1))
def test_a_time_is_the_greatest_of_what_was_joined(joined):
    times = ObjectTimes()
    for time in joined:
        times.join(1, time)
    assert [entry(times.of(1), node) for node in range(4)] == [
        max(entry(time, node) for time in joined) for node in range(4)
    ]


def test_objects_have_times_of_their_own():
    times = ObjectTimes()
    times.join(1, (3,))
    times.join(2, (0, 4))
    assert (times.of(1), times.of(2)) == ((3,), (0, 4))
