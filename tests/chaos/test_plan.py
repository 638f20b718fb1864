"""Plans of chaos come from their seed alone, and make sense."""

import pytest

from dsm.testing.chaos.plan import LONG_CUT_S, Action, draw_job, draw_jobs


@pytest.mark.parametrize("networked", [True, False])
def test_a_seed_gives_one_plan_with_as_many_events_as_wanted(networked):
    jobs = draw_jobs(7, 200, networked)
    assert jobs == draw_jobs(7, 200, networked)
    assert jobs != draw_jobs(8, 200, networked)
    assert sum(len(job.events) for job in jobs) == 200


def test_jobs_and_events_have_every_kind():
    jobs = [job for seed in range(20) for job in draw_jobs(seed, 200, True)]
    assert {job.nodes for job in jobs} == {2, 3, 4}
    assert {job.workers for job in jobs} == {1, 2, 3}
    events = [event for job in jobs for event in job.events]
    assert {event.action for event in events} == set(Action)
    assert any(event.action == Action.KILL_MANAGER and event.node == 0 for event in events)
    assert any(event.for_s == LONG_CUT_S for event in events)


def test_the_first_plan_of_a_campaign_does_not_depend_on_how_many_follow():
    assert draw_jobs(3, 200, True)[0] == draw_jobs(3, 50, True)[0]


def test_no_cut_without_a_network():
    for seed in range(100):
        events = draw_job(str(seed), 10, False).events
        assert all(event.action != Action.CUT for event in events)


def test_the_dead_are_left_alone():
    for seed in range(300):
        job = draw_job(str(seed), 10, True)
        dead_nodes, dead_ranks = set(), set()
        for event in job.events:
            assert event.node not in dead_nodes
            assert event.other not in dead_nodes
            assert event.rank not in dead_ranks
            if event.action == Action.KILL_MANAGER:
                dead_nodes.add(event.node)
            elif event.action == Action.KILL_WORKER:
                dead_ranks.add(event.rank)


def test_nothing_is_stopped_twice_at_once_and_one_link_is_cut_at_a_time():
    for seed in range(300):
        lasting = [event for event in draw_job(str(seed), 10, True).events if event.for_s]
        for i, event in enumerate(lasting):
            for later in lasting[i + 1 :]:
                same = (event.action, event.node, event.rank) == (later.action, later.node, later.rank)
                if same or event.action == later.action == Action.CUT:
                    assert later.at_s > event.until_s
