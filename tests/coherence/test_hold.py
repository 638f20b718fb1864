"""Hold times by themselves: a page granted, mapped, and needed together with another."""

from __future__ import annotations

from dsm.coherence.hold import Hold, key_of
from dsm.limits import HOLD_NS, HOLD_WAIT_MAX_NS, UNAPPLIED_MAX_NS

LOW, HIGH = key_of(1, 5), key_of(2, 0)


def faulted(hold, page, waiter, now):
    """One turn of an instruction: it faults, is granted and maps the page."""
    hold.applied(waiter, now)
    hold.fault(page, waiter, worker=0, instruction=77, now=now)
    hold.granted(waiter, page, now)
    hold.applied(waiter, now)


def test_a_page_is_held_until_delta_after_it_was_mapped():
    hold = Hold()
    hold.fault(LOW, 1, 0, 77, now=0)
    hold.granted(1, LOW, now=10)
    assert hold.until(LOW, 1, now=20) == 10 + UNAPPLIED_MAX_NS
    hold.applied(1, now=30)
    assert hold.until(LOW, 1, now=40) == 30 + HOLD_NS
    assert hold.until(LOW, 1, now=30 + HOLD_NS) == 0


def test_a_slot_that_faults_again_has_mapped_its_page():
    hold = Hold()
    hold.granted(1, LOW, now=0)
    hold.applied(1, now=5)  # what the requester says when the slot asks again
    hold.fault(HIGH, 1, 0, 78, now=5)
    assert hold.until(LOW, 1, now=6) == 5 + HOLD_NS
    assert not hold.unapplied


def test_pages_of_one_instruction_in_a_row_are_not_kept():
    hold = Hold()
    for page in range(10):
        faulted(hold, key_of(1, page), 1, now=page)
    assert hold.until(key_of(1, 0), 10, now=9 + HOLD_NS) == 0


def test_an_instruction_that_faults_in_turn_keeps_the_lower_page_while_it_waits_for_the_higher():
    hold = Hold()
    faulted(hold, LOW, 1, now=0)
    faulted(hold, HIGH, 1, now=1)
    faulted(hold, LOW, 1, now=2)
    hold.applied(1, now=3)
    hold.fault(HIGH, 1, 0, 77, now=3)
    assert hold.until(LOW, 1, now=3 + 10 * HOLD_NS) == 3 + HOLD_WAIT_MAX_NS
    assert hold.until(HIGH, 1, now=3 + 10 * HOLD_NS) == 0
    hold.granted(1, HIGH, now=50)
    hold.applied(1, now=60)
    assert hold.until(LOW, 1, now=61) == 60 + HOLD_NS


def test_the_higher_page_is_not_kept_for_the_lower():
    hold = Hold()
    for now, page in enumerate((HIGH, LOW, HIGH, LOW)):
        faulted(hold, page, 1, now)
    assert hold.until(HIGH, 1, now=3 + HOLD_NS) == 0


def test_a_wait_that_ends_lets_the_kept_page_go():
    hold = Hold()
    for now, page in enumerate((LOW, HIGH, LOW)):
        faulted(hold, page, 1, now)
    hold.fault(HIGH, 1, 0, 77, now=3)
    hold.ended(1, now=4)
    assert hold.until(LOW, 1, now=5) == 0


def test_a_page_kept_by_two_is_held_until_both_are_served():
    hold = Hold()
    for waiter, ip in ((1, 77), (2, 78)):
        for page in (LOW, HIGH, LOW):
            hold.fault(page, waiter, 0, ip, now=0)
        hold.fault(HIGH, waiter, 0, ip, now=0)
    hold.ended(1, now=1)
    assert hold.until(LOW, 1, now=2) == HOLD_WAIT_MAX_NS
    hold.ended(2, now=3)
    assert hold.until(LOW, 1, now=4) == 0


def test_a_dead_worker_holds_nothing():
    hold = Hold()
    hold.granted(1, LOW, now=0)
    hold.forget(lambda waiter: waiter == 1, now=1)
    assert hold.until(LOW, 1, now=2) == 0
    assert not hold.unapplied
