"""What workers ask over the local socket: regions, objects, lists, statistics.

Owns the questions that wait for the coordinator's answer, on whatever node it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING

from dsm.errors import Status, WireError
from dsm.limits import MAX_CONTROL_BYTES
from dsm.log import logger
from dsm.manager.session import Session, lack
from dsm.manager.status import answer_status
from dsm.types import Region
from dsm.wire import control, heaps, leasing
from dsm.wire import membership as meta
from dsm.wire.membership import MetaKind

if TYPE_CHECKING:
    from dsm.manager.manager import Manager

Then = Callable[[meta.Reply], None]
#: Counters by name, and a histogram.
Counters = tuple[dict[str, int], list[int]]
#: Bytes of the regions in one answer; one region is far smaller.
_LIST_BYTES = MAX_CONTROL_BYTES // 2


class Requests:
    """Control requests of one node's workers.

    Parameters
    ----------
    manager
        The node.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._count = 0
        self._asked: dict[int, Then] = {}
        #: Counters and latencies of workers that are gone.
        self._gone: Counters = ({}, [])

    # -- the coordinator ---------------------------------------------------------------------------------

    def ask(self, worker: int, question: meta.Question, then: Then) -> None:
        """Ask the coordinator, perhaps this node itself; `then(reply)`."""
        manager = self._manager
        ask = meta.Ask(worker, question)
        if manager.coordinator is not None:
            manager.coordinator.ask(manager.members.node, ask, then)
            return
        link = manager.members.links.get(0)
        if link is None:  # lost in this very round: the node ends with it
            then(control.Failed(Status.NODE_LOST, "the coordinator is lost; this node ends"))
            return
        self._count += 1
        self._asked[self._count] = then
        payload = meta.encode(ask)
        link.send(manager.members.header(MetaKind.ASK, len(payload), self._count), payload)

    def told(self, request: int, reply: meta.Reply) -> None:
        """The coordinator's answer came."""
        then = self._asked.pop(request, None)
        if then is None:
            raise WireError(f"the coordinator answers question {request}, which was not asked")
        then(reply)

    # -- workers -----------------------------------------------------------------------------------------

    def handle(self, session: Session, number: int, body: object) -> None:
        """Answer one request, now or later."""
        manager = self._manager
        if isinstance(body, control.Attach):
            self._attach(session, number, body)
        elif isinstance(body, (control.CreateRegion, control.OpenRegion)):
            self.ask(session.worker, body, lambda reply: self._opened(session, number, reply))
        elif isinstance(body, (control.RegionReady, control.DestroyRegion)):
            self.ask(session.worker, body, lambda reply: self._finished(session, number, reply))
        elif isinstance(body, control.CloseRegion):
            manager.coherence.pager.unmap_region(body.region, session.worker)
            session.answer(number, control.Done())
        elif isinstance(body, control.ListRegions):
            self.ask(
                session.worker,
                meta.ListNamed(),
                lambda reply: self._listed(session, number, body.after, reply),
            )
        elif isinstance(body, control.OpenSync):
            self.ask(session.worker, body, lambda reply: self._sync_opened(session, number, reply))
        elif isinstance(body, control.ListNodes):
            session.answer(number, control.NodeList(manager.members.nodes))
        elif isinstance(body, control.GetStatistics):
            session.answer(number, self._statistics())
        elif isinstance(body, control.GetStatus):
            manager.status.collect(lambda status: answer_status(session, number, status))
        elif isinstance(body, control.GetPages):
            manager.pages.ask(session, number, body)
        elif isinstance(body, leasing.Request):
            manager.leases.handle(session, number, body)
        elif isinstance(body, heaps.WorkerQuestion):
            manager.heaps.handle(session, number, body)

    def _attach(self, session: Session, number: int, body: control.Attach) -> None:
        manager = self._manager
        manager.sessions.admit(session)

        def taken(reply: meta.Reply) -> None:
            if not isinstance(reply, meta.RankTaken):
                self.refused(session, number, reply)
                return
            session.rank = reply.rank
            logger.info("worker %d (rank %d, process %d) attached", session.worker, reply.rank, session.pid)
            attached = control.Attached(
                node=manager.members.node,
                worker=session.worker,
                rank=reply.rank,
                size=reply.size,
                manager_pid=os.getpid(),
                cluster=manager.members.cluster.hex(),
                launched=manager.ranks > 0,
            )
            fds = (manager.node_fd, session.board_fd, manager.bell_fd, session.nudge_fd)
            session.answer(number, attached, fds)

        self.ask(session.worker, meta.TakeRank(body.rank, body.forked), taken)

    def _opened(self, session: Session, number: int, reply: meta.Reply) -> None:
        if not isinstance(reply, meta.Found):
            self.refused(session, number, reply)
            return
        region: Region = reply.region

        def give() -> None:
            if not self.give_region(session, number, region, control.Opened(region, reply.created)):
                session.fail(number, Status.CLOSED, f"region {region.region} was destroyed meanwhile")

        if reply.created and region.options.use == "block":
            self._manager.heaps.block_created(region, give)
        else:
            give()

    def give_region(self, session: Session, number: int, region: Region, body: control.Reply) -> bool:
        """Answer with `body` and what the worker needs to map the region; False when it is gone."""
        frames = self._manager.coherence.frames.get(region.region)
        if session.closed:
            return True
        if frames is None:
            return False
        if self._manager.coherence.pager.is_mapped(region.region, session.worker):
            # It has the region open: its applied table stays the one that we read.
            session.answer(number, body)
            return True
        try:
            applied_fd = os.memfd_create(f"dsm-applied-{region.region}-{session.worker}", os.MFD_CLOEXEC)
            try:
                os.ftruncate(applied_fd, region.pages)
                self._manager.coherence.pager.map_region(region.region, session.worker, applied_fd)
                fds = (frames.frames_fd, frames.wanted_fd, applied_fd)
                session.answer(number, body, fds)
            finally:
                os.close(applied_fd)
        except (OSError, MemoryError) as error:
            session.fail(number, Status.LIMIT, lack(error))
        return True

    def _finished(self, session: Session, number: int, reply: meta.Reply) -> None:
        if isinstance(reply, meta.Finished):
            session.answer(number, control.Done())
        else:
            self.refused(session, number, reply)

    def _listed(self, session: Session, number: int, after: int, reply: meta.Reply) -> None:
        if isinstance(reply, meta.FoundRegions):
            regions, size = [], 0
            for region in reply.regions:
                if region.region > after:
                    size += len(control.encode(region))
                    if size > _LIST_BYTES:
                        break
                    regions.append(region)
            session.answer(number, control.RegionList(regions, more=size > _LIST_BYTES))
        else:
            self.refused(session, number, reply)

    def _sync_opened(self, session: Session, number: int, reply: meta.Reply) -> None:
        if isinstance(reply, meta.FoundSync):
            self._manager.sync.opened(reply.object)
            session.answer(number, control.SyncOpened(reply.object))
        else:
            self.refused(session, number, reply)

    def refused(self, session: Session, number: int, reply: meta.Reply) -> None:
        """Say to a worker why the coordinator refused what it asked."""
        if isinstance(reply, control.Failed):
            session.answer(number, reply)
        else:
            session.fail(number, Status.INTERNAL, f"the coordinator answered {type(reply).__name__}")

    def worker_gone(self, session: Session) -> None:
        """Let the coordinator give up what the worker was creating, and keep its counters."""
        self._manager.heaps.worker_gone(session)
        self._gone = _sum([self._gone, self._manager.board.statistics(session.worker)])
        self.ask(session.worker, meta.WorkerGone(session.worker), lambda reply: None)

    def _statistics(self) -> control.Statistics:
        """Counters of this node: its coherence, and the sum over its workers."""
        manager = self._manager
        coherence = manager.coherence
        traffic = manager.members.traffic()
        values = {
            "pages_in": coherence.pages_in,
            "pages_out": coherence.pages_out,
            "bytes_in": coherence.bytes_in,
            "bytes_out": coherence.bytes_out,
            "messages_in": traffic.messages_in,
            "messages_out": traffic.messages_out,
            "message_bytes_in": traffic.bytes_in,
            "message_bytes_out": traffic.bytes_out,
            "invalidations": coherence.invalidations,
        }
        live = [manager.board.statistics(worker) for worker in manager.sessions.workers]
        counters, latency = _sum([self._gone, *live])
        return control.Statistics(values | counters, latency)


def _sum(parts: Iterable[Counters]) -> Counters:
    values: dict[str, int] = {}
    latency: list[int] = []
    for counters, buckets in parts:
        for key, value in counters.items():
            values[key] = values.get(key, 0) + value
        latency = [a + b for a, b in zip_longest(latency, buckets, fillvalue=0)]
    return values, latency
