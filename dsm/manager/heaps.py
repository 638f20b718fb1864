"""Heaps on this node: what workers and other nodes ask about them.

Owns the pools of this node (`dsm.manager.nodepool`), one for each heap that a worker here has opened, the
questions to other nodes under way, and the memory of eager heaps, which is got from the system at once.

A pool is asked by its own node's workers directly.  What concerns blocks of another node goes there as a
question; blocks that are freed far from home gather in a ring of each worker and go home in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dsm import proc
from dsm.errors import DSMError, InternalError, LimitError, Status, status_of
from dsm.log import logger
from dsm.manager.backing import Backing
from dsm.manager.gathering import Gathering
from dsm.manager.growth import Growth
from dsm.manager.link import Link
from dsm.manager.nodepool import NodePool, closed
from dsm.manager.session import Session, lack
from dsm.types import HeapRecord, Region
from dsm.wire import control, heaps
from dsm.wire import membership as meta
from dsm.wire.membership import MetaKind

if TYPE_CHECKING:
    from dsm.manager.manager import Manager

#: Called with a node's answer; None: it is lost, or has not answered in time.
Told = Callable[[heaps.NodeAnswer | None], None]


#: Blocks with their own regions that are noted before those are looked for that are gone.
FORGET_EACH = 1024


class HeapDesk:
    """Answers questions about heaps.

    Parameters
    ----------
    manager
        The node.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._pools: dict[int, NodePool] = {}
        self._questions: Gathering[heaps.NodeAnswer] = Gathering(manager, MetaKind.ASK_HEAP)
        self._backing = Backing(manager)

    @property
    def _node(self) -> int:
        return self._manager.members.node

    # -- this node's workers -----------------------------------------------------------------------------

    def handle(self, session: Session, number: int, body: heaps.WorkerQuestion) -> None:
        """Answer a worker, now or later; raises what the answer is when it is one of `dsm.errors`."""
        if isinstance(body, (heaps.OpenHeap, heaps.FindHeap)):
            self._ask(session.worker, body, lambda reply: self._found(session, number, body.cached, reply))
            return
        if isinstance(body, heaps.DestroyHeap):
            self._ask(session.worker, body, lambda reply: self._finish(session, number, reply))
            return
        pool = self._pool(body.heap)
        worker = session.worker

        def answer(reply: control.Reply) -> None:
            session.answer(number, reply)

        def fail(error: DSMError | None) -> None:
            if error is not None:
                session.fail(number, status_of(error), str(error))

        if isinstance(body, heaps.HeapTake):
            pool.take(worker, body.size_class, body.count, answer, fail)
        elif isinstance(body, heaps.HeapAllocate):
            pool.allocate(worker, body, answer, fail)
        elif isinstance(body, heaps.HeapGive):
            given = pool.give(worker, body.number, body.addresses) if body.number else heaps.HeapGiven()
            self._drain(
                pool, [worker], lambda refused: answer(heaps.HeapGiven(given.refused + refused, given.gone))
            )
        elif isinstance(body, heaps.HeapTrim):
            self._ask_all(body, lambda answers, silent: answer(control.Done()))
        elif isinstance(body, heaps.HeapFigures):
            # What was freed before is home before anything is counted.
            self._ask_all(
                heaps.HeapFlush(body.heap),
                lambda _, __: self._ask_all(
                    body, lambda answers, silent: answer(self._counted(pool, answers, silent))
                ),
            )
        elif isinstance(body, heaps.HeapCheck):
            self._ask_all(body, lambda answers, silent: answer(_checked(answers, silent)))
        elif body.node == self._node:
            self._local(pool, body, lambda reply: self._relay(session, number, body, reply))
        elif isinstance(body, heaps.HeapBlocks) and not body.patient:
            self._questions.ask(
                [body.node],
                lambda answers, silent: self._relay(session, number, body, answers.get(body.node)),
                meta.encode(heaps.AskHeap(body)),
            )
        else:
            self._ask_node(body.node, body, lambda reply: self._relay(session, number, body, reply))

    def _pool(self, heap: int) -> NodePool:
        pool = self._pools.get(heap)
        if pool is None:
            raise closed(heap)
        return pool

    def _ask(self, worker: int, question: meta.Question, then: Callable[[meta.Reply], None]) -> None:
        self._manager.requests.ask(worker, question, then)

    def _found(self, session: Session, number: int, cached: tuple[int, ...], reply: meta.Reply) -> None:
        """The coordinator knows the heap: give the worker a cache of it, and an eager one an extent."""
        if not isinstance(reply, heaps.FoundHeap):
            assert isinstance(reply, control.Failed)
            session.answer(number, reply)
            return
        if session.closed:
            return
        heap, created = reply.heap, reply.created
        pool = self._pools.get(heap.number)
        if pool is None:
            pool = self._pools[heap.number] = self._make(heap)
        if heap.number not in cached:  # also one that was interrupted when it opened the heap
            self._send_home(pool, pool.worker_gone(session.worker), lambda refused: None)
        try:
            cache = pool.open(session.worker)
        except (OSError, MemoryError) as error:
            session.fail(number, Status.LIMIT, lack(error))
            return
        fds = () if cache is None else (cache,)
        if heap.options.kind != "eager" or heap.options.manager != "pooled":
            session.answer(number, heaps.HeapOpened(heap, created), fds)
            return

        def ready(error: DSMError | None) -> None:
            if error is None:
                session.answer(number, heaps.HeapOpened(heap, created), fds)
            else:
                if fds:
                    pool.worker_gone(session.worker)
                session.fail(number, status_of(error), str(error))

        pool.prepare(ready)

    def _make(self, heap: HeapRecord) -> NodePool:
        def added(region: Region, then: Callable[[int], None]) -> None:
            if heap.options.kind == "eager":
                self._backing.begin(region.region, then)
            else:
                then(0)

        def relieve(then: Callable[[], None]) -> None:
            self._ask_all(heaps.HeapTrim(heap.number), lambda answers, silent: then())

        def room(nbytes: int) -> None:
            if (
                heap.options.kind == "eager"
                and nbytes + self._backing.pending > proc.memory()["MemAvailable"]
            ):
                raise LimitError(
                    f"heap {heap.options.name!r} is eager: {nbytes} bytes were to be backed by memory at "
                    "once, and "
                    f"MemAvailable of the machine of node {self._node} is less; ask for less, or make it lazy"
                )

        def ask(question: meta.Question, then: Callable[[meta.Reply], None]) -> None:
            self._ask(-1, question, then)

        growth = Growth(heap.options, self._node, ask, added, room, relieve)
        return NodePool(heap, self._node, growth)

    def _finish(self, session: Session, number: int, reply: meta.Reply) -> None:
        if isinstance(reply, control.Failed):
            session.answer(number, reply)
        else:
            session.answer(number, control.Done())

    def _relay(
        self, session: Session, number: int, body: heaps.WorkerQuestion, reply: heaps.NodeAnswer | None
    ) -> None:
        """Answer a worker with what the node of a block has said."""
        if reply is None and isinstance(body, heaps.HeapFree):
            self._lose(self._pools.get(body.heap), 1)
            session.answer(number, heaps.HeapFreed(lost=True))
        elif reply is None and isinstance(body, heaps.HeapBlocks) and not body.patient:
            session.fail(
                number,
                Status.PAGE_TIMEOUT,
                f"node {body.node} did not say in time which blocks it keeps, or was lost meanwhile",
            )
        elif reply is None:
            node = getattr(body, "node", -1)
            session.fail(
                number, Status.PAGE_LOST, f"a block of node {node}, which is gone: it went away with it"
            )
        elif isinstance(reply, heaps.HeapRefused):
            session.fail(number, reply.status, reply.message)
        elif isinstance(reply, heaps.HeapDone):
            session.answer(number, control.Done())
        else:
            session.answer(number, reply)

    def _lose(self, pool: NodePool | None, blocks: int) -> None:
        if pool is not None:
            pool.lost += blocks

    def worker_gone(self, session: Session) -> None:
        """A worker left or died: what its caches have goes back, what was on its way home goes on."""
        for pool in list(self._pools.values()):
            self._send_home(pool, pool.worker_gone(session.worker), lambda refused: None)

    # -- this node's pools, asked by anybody -------------------------------------------------------------

    def _local(
        self, pool: NodePool, body: heaps.NodeQuestion, then: Callable[[heaps.NodeAnswer], None]
    ) -> None:
        """Answer what concerns this node's pool; `HeapRefused` for errors."""
        try:
            if isinstance(body, heaps.HeapFree):
                then(pool.free(body.address, body.nbytes, body.place))
            elif isinstance(body, heaps.HeapRetire):
                pool.retire(body.addresses)
                then(heaps.HeapDone())
            elif isinstance(body, heaps.HeapGuarded):
                pool.guarded(body.address)
                then(heaps.HeapDone())
            elif isinstance(body, heaps.HeapGrow):
                then(pool.grow_block(body.address, body.nbytes, body.before))
            elif isinstance(body, heaps.HeapUnasked):
                pool.unasked[body.region] = max(0, min(body.nbytes, 1 << 62))
                self._forget_blocks(pool.unasked, len(pool.unasked) % FORGET_EACH == 0)
                then(heaps.HeapDone())
            elif isinstance(body, heaps.HeapFind):
                then(pool.find(body.address, body.place))
            elif isinstance(body, heaps.HeapTrim):
                pool.trim(lambda: then(heaps.HeapDone()))
            elif isinstance(body, heaps.HeapFigures):
                self._forget_blocks(pool.locked_blocks)
                self._forget_blocks(pool.unasked)
                then(heaps.HeapCounted((pool.count(),)))
            elif isinstance(body, heaps.HeapCheck):
                then(heaps.HeapChecked(pool.check()))
            elif isinstance(body, heaps.HeapBlocks):
                then(pool.list_blocks(body.after))
            elif isinstance(body, heaps.HeapFlush):
                self._drain(pool, list(pool.caches), lambda refused: then(heaps.HeapDone()))
            else:
                then(heaps.HeapGiven(tuple(pool.come_home(body.blocks))))
        except DSMError as error:
            if isinstance(error, InternalError):
                logger.error("a question about heap %d: %s", body.heap, error, exc_info=True)
            then(heaps.HeapRefused(status_of(error), str(error)))

    def _drain(self, pool: NodePool, workers: list[int], then: Callable[[tuple[int, ...]], None]) -> None:
        """Send home what these workers have freed; `then(refused)` when it is there."""
        away: dict[int, list[tuple[int, int]]] = {}
        for worker in workers:
            cache = pool.caches.get(worker)
            for node, blocks in (cache.away() if cache is not None else {}).items():
                away.setdefault(node, []).extend(blocks)
        self._send_home(pool, away, then)

    def _send_home(
        self,
        pool: NodePool,
        away: dict[int, list[tuple[int, int]]],
        then: Callable[[tuple[int, ...]], None],
    ) -> None:
        mine = away.pop(self._node, [])
        refused: list[int] = pool.come_home(mine) if mine else []
        left = len(away)
        if not left:
            then(tuple(refused))

        def came(blocks: int, reply: heaps.NodeAnswer | None) -> None:
            nonlocal left
            left -= 1
            if isinstance(reply, heaps.HeapGiven):
                refused.extend(reply.refused)
            else:
                self._lose(pool, blocks)
            if not left:
                then(tuple(refused))

        for node, blocks in away.items():
            body = heaps.HeapHome(pool.heap.number, tuple(blocks))
            self._ask_node(node, body, partial(came, len(blocks)))

    def _forget_blocks(self, table: dict[int, int], now: bool = True) -> None:
        """Forget what was noted of blocks with their own regions that are there no more."""
        if now:
            here = self._manager.coherence.frames
            for number in [number for number in table if number not in here]:
                del table[number]

    def _counted(
        self, pool: NodePool, answers: dict[int, heaps.NodeAnswer], silent: tuple[int, ...]
    ) -> heaps.HeapCounted:
        """Put together what the nodes have counted, and the blocks that are regions: every node knows all."""
        replies = [reply for _, reply in sorted(answers.items()) if isinstance(reply, heaps.HeapCounted)]
        regions = [frames.region for frames in self._manager.coherence.frames.values()]
        name = pool.heap.options.name
        blocks = [
            region.size for region in regions if (region.options.use, region.options.heap) == ("block", name)
        ]
        pools = tuple(count for reply in replies for count in reply.pools)
        refused = {node for node, reply in answers.items() if isinstance(reply, heaps.HeapRefused)}
        return heaps.HeapCounted(pools, len(blocks), sum(blocks), tuple(sorted(refused.union(silent))))

    # -- other nodes -------------------------------------------------------------------------------------

    def _ask_node(self, node: int, body: heaps.NodeQuestion, then: Told) -> None:
        """Ask another node; `then(None)` if it is lost."""
        self._questions.ask_one(node, then, meta.encode(heaps.AskHeap(body)))

    def _ask_all(
        self,
        body: heaps.HeapTrim | heaps.HeapFigures | heaps.HeapCheck | heaps.HeapFlush,
        then: Callable[[dict[int, heaps.NodeAnswer], tuple[int, ...]], None],
    ) -> None:
        """Ask every node, this one too; `then(answers, silent)`.

        Silent is who has not answered in time, and who was lost meanwhile; a node without a pool of this heap
        answers, too.
        """

        def here(told: Callable[[heaps.NodeAnswer], None]) -> None:
            pool = self._pools.get(body.heap)
            if pool is None:
                told(heaps.HeapDone())  # it was destroyed meanwhile
            else:
                self._local(pool, body, told)

        self._questions.ask(
            self._manager.members.nodes,
            lambda answers, silent: then(answers, tuple(each.node for each in silent)),
            meta.encode(heaps.AskHeap(body)),
            here=here,
        )

    def asked(self, link: Link, request: int, asked: heaps.AskHeap) -> None:
        """Another node asks about this one's pool."""
        members = self._manager.members

        def tell(reply: heaps.NodeAnswer) -> None:
            if not link.closed:
                payload = meta.encode(heaps.HeapTold(reply))
                link.send(members.header(MetaKind.HEAP, len(payload), request), payload)

        pool = self._pools.get(asked.body.heap)
        if pool is not None:
            self._local(pool, asked.body, tell)
        elif isinstance(asked.body, (heaps.HeapTrim, heaps.HeapFigures, heaps.HeapCheck, heaps.HeapFlush)):
            tell(heaps.HeapDone())  # no worker here has ever opened it
        elif isinstance(asked.body, heaps.HeapBlocks):
            tell(heaps.HeapListed((), more=False))
        else:
            tell(heaps.HeapRefused(Status.CLOSED, str(closed(asked.body.heap))))

    def told(self, node: int, request: int, told: heaps.HeapTold) -> None:
        """Another node has answered."""
        self._questions.told(node, request, told.body)

    def node_lost(self, node: int) -> None:
        """Another node is dead: it answers nothing any more."""
        self._questions.node_lost(node)

    def drop(self, number: int) -> None:
        """A heap was destroyed."""
        pool = self._pools.pop(number, None)
        if pool is not None:
            pool.close()

    def block_created(self, region: Region, then: Callable[[], None]) -> None:
        """A worker of this node has made a block with its own region: that of an eager heap is backed."""
        pool = next((p for p in self._pools.values() if p.heap.options.name == region.options.heap), None)
        if pool is None or pool.heap.options.kind != "eager":
            then()
            return

        def backed(locked: int) -> None:
            pool.locked_blocks[region.region] = locked
            self._forget_blocks(pool.locked_blocks, len(pool.locked_blocks) % FORGET_EACH == 0)
            then()

        self._backing.begin(region.region, backed)


def _checked(answers: dict[int, heaps.NodeAnswer], silent: tuple[int, ...]) -> heaps.HeapChecked:
    wrong = []
    for node, reply in sorted(answers.items()):
        if isinstance(reply, heaps.HeapChecked) and reply.wrong:
            wrong.append(reply.wrong)
        elif isinstance(reply, heaps.HeapRefused):
            wrong.append(f"node {node} could not verify its pool: {reply.message}")
    return heaps.HeapChecked(wrong[0] if wrong else "", silent)
