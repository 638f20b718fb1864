"""What this node knows of pages, and what the others know, asked for: the rows of `node.page_table`.

Owns the questions under way.  Who wants a long table asks piece by piece, at most `MAX_ROWS` rows at a time,
so that no step of the loop takes long.  Like `dsm.manager.status` it only reads, and answers with what has
come when everybody asked has answered or `COLLECT_S` is over.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

from dsm.coherence.rows import parse
from dsm.errors import ClosedError, Status, UnknownNameError, UsageError, WireError
from dsm.limits import MAX_NODES, MAX_ROWS
from dsm.manager.link import Link
from dsm.manager.session import Session, lack
from dsm.manager.status import COLLECT_S
from dsm.types import Region
from dsm.wire import control
from dsm.wire import membership as meta
from dsm.wire.membership import MetaKind

if TYPE_CHECKING:
    from dsm.manager.manager import Manager


class _Question:
    """A range of pages that somebody on this node asks about."""

    def __init__(self, session: Session, number: int, region: Region, asked: control.GetPages) -> None:
        self.session = session
        self.number = number
        self.region = region
        self.page = asked.page
        self.count = asked.count
        #: Nodes that have yet to answer, and what the others said.
        self.missing: set[int] = set()
        self.rows: dict[int, bytes] = {}
        #: Nodes that cannot be asked.
        self.absent: list[int] = []


class PagesDesk:
    """Answers questions about pages of this node, and of the cluster.

    Parameters
    ----------
    manager
        The node.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._numbers = itertools.count(1)
        self._under_way: dict[int, _Question] = {}

    def ask(self, session: Session, number: int, asked: control.GetPages) -> None:
        """Answer a `GetPages`, now or when others have answered.

        Raises
        ------
        UnknownNameError, ClosedError
            There is no such region (any more).
        UsageError
            The pages are not its, or too many.
        """
        region = self._region(asked.key)
        if not (
            asked.page >= 0 and 0 <= asked.count <= MAX_ROWS and asked.page + asked.count <= region.pages
        ):
            raise UsageError(
                f"pages {asked.page}+{asked.count} of region {region.region}, which has {region.pages}, "
                f"are not up to {MAX_ROWS} of its pages"
            )
        if asked.nodes is not None and not all(0 <= node < MAX_NODES for node in asked.nodes):
            raise UsageError(f"nodes {asked.nodes[:8]} are not numbers below {MAX_NODES}")
        members = self._manager.members
        question = _Question(session, number, region, asked)
        wanted = list(members.nodes) if asked.nodes is None else sorted(set(asked.nodes))
        question.absent = [node for node in wanted if node not in members.nodes]
        wanted = [node for node in wanted if node in members.nodes]
        if not asked.count:
            question.rows = dict.fromkeys(wanted, b"")
            self._answer(question)
            return
        question.missing = {node for node in wanted if node != members.node}
        if members.node in wanted:
            question.rows[members.node] = self._rows(region.region, asked.page, asked.count)
        if not question.missing:
            self._answer(question)
            return
        request = next(self._numbers) & 0xFFFFFFFF
        self._under_way[request] = question
        payload = meta.encode(meta.AskPages(region.region, asked.page, asked.count))
        for node in question.missing:
            link = members.links.get(node)
            if link is not None:
                link.send(members.header(MetaKind.ASK_PAGES, len(payload), request), payload)
        self._manager.loop.after(COLLECT_S, lambda: self._finish(request))

    def _region(self, key: str | int) -> Region:
        regions = self._manager.coherence.frames
        if isinstance(key, int):
            if key not in regions:
                raise ClosedError(f"region {key} does not exist (any more): it was destroyed")
            return regions[key].region
        for frames in regions.values():
            if frames.region.options.name == key:
                return frames.region
        raise UnknownNameError(f"there is no array or region {key!r} in this cluster")

    def _rows(self, region: int, page: int, count: int) -> bytes:
        engine = self._manager.coherence.engine
        rows: bytes = engine.rows(region, page, count, time.monotonic_ns()).tobytes()
        return rows

    # -- other nodes -------------------------------------------------------------------------------------

    def asked(self, link: Link, request: int, asked: meta.AskPages) -> None:
        """Another node asks what this one knows."""
        frames = self._manager.coherence.frames.get(asked.region)
        rows = b""
        if frames is not None:
            page, count = asked.page, asked.count
            if not (page >= 0 and 0 < count <= MAX_ROWS and page + count <= frames.region.pages):
                raise WireError(f"a question about pages {page}+{count} of {frames.region.pages}")
            rows = self._rows(asked.region, page, count)
        payload = meta.encode(meta.PagesTold(rows))
        link.send(self._manager.members.header(MetaKind.PAGES, len(payload), request), payload)

    def told(self, node: int, request: int, rows: bytes) -> None:
        """Another node has answered; late answers find nobody who waits."""
        question = self._under_way.get(request)
        if question is None or node not in question.missing:
            return
        if rows and parse(rows, question.count) is None:
            raise WireError(f"{len(rows)} bytes are no rows of {question.count} pages")
        question.missing.remove(node)
        if rows:
            question.rows[node] = rows
        if not question.missing:
            self._finish(request)

    def _finish(self, request: int) -> None:
        question = self._under_way.pop(request, None)
        if question is not None:
            self._answer(question)

    def _answer(self, question: _Question) -> None:
        """Answer with what has come, in a memory file: it may be longer than a datagram."""
        region, session = question.region, question.session
        nodes = sorted(question.rows)
        silent = [self._manager.status.silent(node) for node in sorted([*question.missing, *question.absent])]
        answer = control.Pages(
            region.region,
            region.options.name,
            region.address,
            region.options.page_size,
            region.pages,
            region.options.consistency,
            question.page,
            question.count,
            tuple(nodes),
            tuple(silent),
        )
        try:
            fd = os.memfd_create("dsm-pages", os.MFD_CLOEXEC)
            try:
                with open(fd, "wb", closefd=False) as file:
                    for node in nodes:
                        file.write(question.rows[node])
                session.answer(question.number, answer, (fd,))
            finally:
                os.close(fd)
        except OSError as error:
            session.fail(question.number, Status.LIMIT, lack(error))
