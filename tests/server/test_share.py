"""Memory that many take parts of: never more than there is, and everybody's turn comes."""

from hypothesis import given
from hypothesis import strategies as st

from dsm.server.share import Share


def test_who_finds_no_room_is_served_in_order():
    share = Share(100)
    assert share.take("a", 60) and share.take("b", 40)
    assert not share.take("c", 80)
    assert not share.take("d", 10)
    assert share.give("b") == []
    assert not share.take("e", 10), "others wait, and are not overtaken"
    assert share.give("c") == ["d", "e"], "it does not wait any more"
    assert share.give("a") == [] and share.left == 80
    assert share.give("nobody") == []


def test_one_that_needs_all_gets_all():
    share = Share(100)
    assert share.take("a", 1)
    assert not share.take("b", 100)
    assert share.give("a") == ["b"]
    assert share.taken == {"b": 100} and share.left == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(1, 100)), max_size=60))
def test_there_is_never_more_taken_than_there_is_and_nobody_waits_for_nothing(steps):
    share = Share(100)
    has, line = {}, {}
    for gives, who, nbytes in steps:
        if gives:
            has.pop(who, None)
            line.pop(who, None)
            served = share.give(who)
        elif who in has or who in line:
            continue
        else:
            line[who] = nbytes
            served = [who] if share.take(who, nbytes) else []
        for each in served:
            assert each == next(iter(line))
            has[each] = line.pop(each)
        assert (share.taken, share.waiting) == (has, line)
        assert share.left == 100 - sum(has.values()) >= 0
        assert not line or next(iter(line.values())) > share.left
    for who in list(has) + list(line):
        share.give(who)
    assert share.left == 100
