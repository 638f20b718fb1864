"""Questions of one kind to other nodes: what each of them answers, gathered until all have or it is too late.

Owns the questions under way, by number.  Whoever asks goes on at once when nobody else is to be asked, else
when everybody has answered or `COLLECT_S` is over; an answer that comes later finds nobody who waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from dsm.manager.link import Link
from dsm.wire.address import show_address
from dsm.wire.membership import MetaKind
from dsm.wire.status import SilentNode

if TYPE_CHECKING:
    from dsm.manager.manager import Manager

T = TypeVar("T")
#: Takes the answers by node, and what is known of the nodes without one.
Then = Callable[[dict[int, T], tuple[SilentNode, ...]], None]

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
        self._under_way: dict[int, _Question[T]] = {}

    def ask(
        self,
        nodes: Iterable[int],
        then: Then[T],
        payload: bytes | None = None,
        check: Callable[[T], None] = lambda _: None,
    ) -> None:
        """Ask these nodes but this one; `then(answers, silent)`, perhaps at once.

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
        """
        members = self._manager.members
        question = _Question(set(nodes) - {members.node}, members.nodes, then, check)
        number = next(self._numbers) & 0xFFFFFFFF
        self._under_way[number] = question
        if not question.missing:
            self._finish(number)
            return
        for node in question.missing:
            link = members.links.get(node)
            if link is not None:
                link.send(members.header(self._kind, len(payload or b""), number), payload)
        self._manager.loop.after(COLLECT_S, lambda: self._finish(number))

    def told(self, node: int, number: int, answer: T) -> None:
        """Another node has answered.

        Raises
        ------
        WireError
            That is no answer to this question.
        """
        question = self._under_way.get(number)
        if question is None or node not in question.missing:
            return
        question.check(answer)
        question.missing.remove(node)
        question.answers[node] = answer
        if not question.missing:
            self._finish(number)

    def _finish(self, number: int) -> None:
        question = self._under_way.pop(number, None)
        if question is not None:
            links = self._manager.members.links
            silent = sorted(question.asked - question.answers.keys())
            question.then(question.answers, tuple(_silent(node, links.get(node)) for node in silent))


def _silent(node: int, link: Link | None) -> SilentNode:
    """Return what is known of a node that does not answer."""
    if link is None or link.closed:
        return SilentNode(node)
    try:
        here, there = link.sock.getsockname(), link.sock.getpeername()
    except OSError:
        return SilentNode(node)
    return SilentNode(node, show_address(*there[:2]), show_address(*here[:2]))
