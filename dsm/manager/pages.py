"""What this node knows of pages, and what the others know, asked for: the rows of `node.page_table`.

Who wants a long table asks piece by piece, at most `MAX_ROWS` rows at a time, so that no step of the loop
takes long.  Like `dsm.manager.status` it only reads, and answers with what has come when everybody asked has
answered or their time is over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dsm.coherence.rows import parse
from dsm.errors import ClosedError, UnknownNameError, UsageError, WireError
from dsm.limits import MAX_NODES, MAX_ROWS
from dsm.manager.answers import answer_in_file
from dsm.manager.gathering import Gathering
from dsm.manager.link import Link
from dsm.manager.session import Session
from dsm.types import Region
from dsm.wire import control
from dsm.wire import membership as meta
from dsm.wire.membership import MetaKind
from dsm.wire.status import SilentNode

if TYPE_CHECKING:
    from dsm.manager.manager import Manager


class PagesDesk:
    """Answers questions about pages of this node, and of the cluster.

    Parameters
    ----------
    manager
        The node.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._gathering: Gathering[bytes] = Gathering(manager, MetaKind.ASK_PAGES)

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
        wanted = set(members.nodes if asked.nodes is None else asked.nodes)
        rows: dict[int, bytes] = {}
        if not asked.count:  # who would be asked
            rows = dict.fromkeys(wanted.intersection(members.nodes), b"")
            wanted -= rows.keys()
        elif members.node in wanted:
            rows[members.node] = self._rows(region.region, asked.page, asked.count)

        def check(told: bytes) -> None:
            if told and parse(told, asked.count) is None:
                raise WireError(f"{len(told)} bytes are no rows of {asked.count} pages")

        def gathered(answers: dict[int, bytes], silent: tuple[SilentNode, ...]) -> None:
            rows.update((node, told) for node, told in answers.items() if told)
            answer = control.Pages(
                region.region,
                region.options.name,
                region.address,
                region.options.page_size,
                region.pages,
                region.options.consistency,
                asked.page,
                asked.count,
                tuple(sorted(rows)),
                silent,
            )
            answer_in_file(session, number, answer, (rows[node] for node in answer.nodes))

        payload = meta.encode(meta.AskPages(region.region, asked.page, asked.count))
        self._gathering.ask(wanted, gathered, payload, check)

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
        """Another node has answered; `WireError` when these are no rows of what it was asked about."""
        self._gathering.told(node, request, rows)
