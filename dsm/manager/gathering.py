"""Questions of one kind to nodes: what each of them answers, gathered until all have or it is too late.

Owns the questions under way, by number.  Whoever asks several goes on at once when nobody is to be asked,
else when everybody has answered or is lost, or `COLLECT_S` is over; an answer that comes later finds nobody
who waits.  Whoever asks one node waits as long as it lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from dsm.errors import WireError
from dsm.manager.link import Link
from dsm.wire.address import show_address
from dsm.wire.membership import MetaKind
from dsm.wire.status import SilentNode

if TYPE_CHECKING:
    from dsm.manager.manager import Manager

T = TypeVar("T")
#: Takes the answers by node, and what is known of the nodes without one.
Then = Callable[[dict[int, T], tuple[SilentNode, ...]], None]
#: Asks this node itself: called with what takes its answer.
Here = Callable[[Callable[[T], None]], None]

#: How long the others have to answer.
COLLECT_S = 1.5


class _Question(Generic[T]):
    """One question under way."""

    def __init__(
        self, asked: set[int], members: Iterable[int], then: Then[T], check: Callable[[T], None]
    ) -> None:
        self.asked = asked
        #: Nodes that have yet to answer, and what the others said.
        self.missing = asked.intersection(members)
        self.answers: dict[int, T] = {}
        self.then = then
        self.check = check


class Gathering(Generic[T]):
    """Questions of one kind, and their answers.

    Parameters
    ----------
    manager
        The node that asks.
    kind
        The message that asks; its answer carries the same number.
    """

    def __init__(self, manager: Manager, kind: MetaKind) -> None:
        self._manager = manager
        self._kind = kind
        self._numbers = itertools.count(1)
        #: The last number that was given.
        self._last = 0
        self._under_way: dict[int, _Question[T]] = {}

    def ask(
        self,
        nodes: Iterable[int],
        then: Then[T],
        payload: bytes | None = None,
        check: Callable[[T], None] = lambda _: None,
        here: Here[T] | None = None,
    ) -> None:
        """Ask these nodes; `then(answers, silent)`, perhaps at once.

        Parameters
        ----------
        nodes
            Those that are not members of the cluster (any more) are silent.
        then
            Called once; the silent nodes are in order.
        payload
            What the message that asks carries.
        check
            Raises `WireError` about what is no answer to this question.
        here
            Asks this node, too; None: it is not asked.
        """
        members = self._manager.members
        own = members.node
        asked = set(nodes)
        question = _Question(asked | {own} if here else asked - {own}, members.nodes, then, check)
        number = self._begin(question, payload)
        if here is not None:
            here(lambda answer: self._answered(number, own, answer))
        if number in self._under_way:
            self._manager.loop.after(COLLECT_S, lambda: self._finish(number))

    def ask_one(self, node: int, then: Callable[[T | None], None], payload: bytes | None = None) -> None:
        """Ask one other node, for as long as it takes; `then(None)` if it is lost, or no member."""
        question: _Question[T] = _Question(
            {node} - {self._manager.members.node},
            self._manager.members.nodes,
            lambda answers, _: then(answers.get(node)),
            _any,
        )
        self._begin(question, payload)

    def _begin(self, question: _Question[T], payload: bytes | None) -> int:
        """Send a question to the others that are to answer it."""
        members = self._manager.members
        number = self._last = next(self._numbers) & 0xFFFFFFFF
        self._under_way[number] = question
        for node in question.missing - {members.node}:
            link = members.links.get(node)
            if link is None:
                question.missing.discard(node)
            else:
                link.send(members.header(self._kind, len(payload or b""), number), payload)
        if not question.missing:
            self._finish(number)
        return number

    def told(self, node: int, number: int, answer: T) -> None:
        """Another node has answered.

        Raises
        ------
        WireError
            That is no answer to this question, or it was never asked, or others were.  Of a question that is
            over nothing is known any more: any answer to it is late.
        """
        question = self._under_way.get(number)
        if question is None:
            if not 0 < number <= self._last:
                raise WireError(f"node {node} answers question {number}, which was not asked")
            return
        if node not in question.asked:
            raise WireError(f"node {node} answers question {number}, which others were asked")
        if node in question.missing:
            question.check(answer)
            self._answered(number, node, answer)

    def node_lost(self, node: int) -> None:
        """A node is dead: it answers nothing any more."""
        for number, question in list(self._under_way.items()):
            if node in question.missing:
                self._left(number, question, node)

    def _answered(self, number: int, node: int, answer: T) -> None:
        question = self._under_way.get(number)
        if question is not None:
            question.answers[node] = answer
            self._left(number, question, node)

    def _left(self, number: int, question: _Question[T], node: int) -> None:
        question.missing.discard(node)
        if not question.missing:
            self._finish(number)

    def _finish(self, number: int) -> None:
        question = self._under_way.pop(number, None)
        if question is not None:
            links = self._manager.members.links
            silent = sorted(question.asked - question.answers.keys())
            question.then(question.answers, tuple(_silent(node, links.get(node)) for node in silent))


def _any(answer: object) -> None:
    """Every answer is one."""


def _silent(node: int, link: Link | None) -> SilentNode:
    """Return what is known of a node that does not answer."""
    if link is None or link.closed:
        return SilentNode(node)
    try:
        here, there = link.sock.getsockname(), link.sock.getpeername()
    except OSError:
        return SilentNode(node)
    return SilentNode(node, show_address(*there[:2]), show_address(*here[:2]))
