"""Questions to other nodes: who is asked, when the one who asks goes on, and with what."""

from types import SimpleNamespace

import pytest

from dsm.errors import WireError
from dsm.manager.gathering import COLLECT_S, Gathering
from dsm.wire.membership import MetaKind
from dsm.wire.status import SilentNode


class Link:
    """A connection that only remembers what was sent."""

    closed = True

    def __init__(self):
        self.sent = []

    def send(self, header, payload):
        self.sent.append((header, payload))


@pytest.fixture
def node():
    """Node 1 of the nodes 0 to 3: its links, its timers, and a gathering whose results are listed."""
    links = {number: Link() for number in (0, 2, 3)}
    members = SimpleNamespace(node=1, nodes=[0, 1, 2, 3], links=links, header=lambda *words: words)
    timers = []
    manager = SimpleNamespace(
        members=members, loop=SimpleNamespace(after=lambda seconds, then: timers.append((seconds, then)))
    )
    results = []
    gathering = Gathering(manager, MetaKind.ASK_PAGES)

    def ask(nodes, payload=b"?", **options):
        gathering.ask(
            nodes, lambda answers, silent: results.append((answers, list(silent))), payload, **options
        )

    return SimpleNamespace(
        links=links, timers=timers, results=results, ask=ask, told=gathering.told, gathering=gathering
    )


def test_each_of_the_others_is_asked_once(node):
    node.ask([0, 1, 3], b"what")
    assert {number: link.sent for number, link in node.links.items()} == {
        0: [((MetaKind.ASK_PAGES, 4, 1), b"what")],
        2: [],
        3: [((MetaKind.ASK_PAGES, 4, 1), b"what")],
    }


def test_the_last_answer_ends_the_question_before_its_time(node):
    node.ask([0, 3])
    node.told(3, 1, "c")
    assert node.results == []
    node.told(0, 1, "a")
    assert node.results == [({0: "a", 3: "c"}, [])]
    [(seconds, late)] = node.timers
    late()
    assert seconds == COLLECT_S and len(node.results) == 1


def test_who_does_not_answer_in_time_is_silent_and_his_late_answer_is_nothing(node):
    node.ask([0, 2, 3])
    node.told(2, 1, "b")
    node.timers[0][1]()
    node.told(0, 1, "a")
    assert node.results == [({2: "b"}, [SilentNode(0), SilentNode(3)])]


def test_who_is_no_member_is_silent_and_nobody_waits_for_him(node):
    node.ask([1, 7, 5])
    assert node.results == [({}, [SilentNode(5), SilentNode(7)])] and not node.timers


def test_answers_count_for_their_question_alone_and_once(node):
    node.ask([0, 3])
    node.ask([0, 3])
    node.told(0, 1, "a")
    node.told(0, 1, "again")
    node.told(3, 2, "other")
    node.told(3, 1, "c")
    assert node.results == [({0: "a", 3: "c"}, [])]


def test_what_is_no_answer_is_refused_and_still_missing(node):
    def check(answer):
        if answer != "good":
            raise WireError("no answer")

    node.ask([0], check=check)
    with pytest.raises(WireError, match="no answer"):
        node.told(0, 1, "bad")
    node.told(0, 1, "good")
    assert node.results == [({0: "good"}, [])]


def test_a_node_without_a_connection_is_silent_at_once(node):
    del node.links[3]
    node.ask([0, 3])
    node.told(0, 1, "a")
    assert node.results == [({0: "a"}, [SilentNode(3)])]


def test_this_node_answers_with_the_others_now_or_later(node):
    told = []
    node.ask([0, 1], here=told.append)
    node.ask([0, 1], here=lambda tell: tell("b"))
    node.told(0, 1, "a")
    node.told(0, 2, "a")
    assert node.results == [({0: "a", 1: "b"}, [])]
    told[0]("b")
    assert node.results == [({0: "a", 1: "b"}, [])] * 2


def test_a_node_that_is_lost_is_not_waited_for(node):
    node.ask([0, 3])
    node.ask([3])
    node.told(0, 1, "a")
    node.gathering.node_lost(3)
    node.gathering.node_lost(2)
    assert node.results == [({0: "a"}, [SilentNode(3)]), ({}, [SilentNode(3)])]


def test_one_node_is_asked_for_as_long_as_it_lives(node):
    told = []
    node.gathering.ask_one(2, told.append, b"what")
    node.gathering.ask_one(3, told.append)
    assert node.links[2].sent == [((MetaKind.ASK_PAGES, 4, 1), b"what")] and not node.timers
    node.told(2, 1, "b")
    assert told == ["b"]
    node.gathering.node_lost(3)
    assert told == ["b", None]


@pytest.mark.parametrize("other", [1, 7, -1])
def test_one_that_is_no_other_node_has_no_answer(node, other):
    told = []
    node.gathering.ask_one(other, told.append)
    assert told == [None]


@pytest.mark.parametrize("number", [0, 2, 1 << 31])
def test_an_answer_to_what_was_never_asked_is_refused(node, number):
    node.ask([0])
    with pytest.raises(WireError, match="which was not asked"):
        node.told(0, number, "a")


def test_an_answer_to_what_others_were_asked_is_refused_while_they_are_waited_for(node):
    node.ask([0])
    node.gathering.ask_one(3, node.results.append)
    for number in (1, 2):
        with pytest.raises(WireError, match=f"node 2 answers question {number}, which others were asked"):
            node.told(2, number, "a")
    node.told(0, 1, "a")
    node.told(2, 1, "nobody knows any more")
    assert node.results == [({0: "a"}, [])]
