"""The coordinator: the node that holds the metadata store and decides what there is.

Owns the order of changes to the cluster's metadata: a region is known to every node before its
creator is told, and out of every worker's reach before its destroyer is told.  New nodes join one
after the other.  Runs in the manager that was started without ``--join``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from dsm.errors import DSMError, Status, UsageError, WireError, status_of
from dsm.limits import JOIN_TIMEOUT_S, MAX_REGION_BYTES
from dsm.manager.leases import Leases, Regions, refuse_region
from dsm.manager.link import Link
from dsm.manager.membership import Membership
from dsm.manager.metadata.store import MetadataStore
from dsm.types import Region, RegionOptions, SyncObject
from dsm.wire import control, heaps, leasing
from dsm.wire import membership as meta
from dsm.wire.membership import MetaKind

Answer = Callable[[meta.Reply], None]


class LocalNode:
    """What the coordinator asks of its own node (the manager fills it in)."""

    add_region: Callable[[Region], None]
    #: ``drop_region(number, done)``.
    drop_region: Callable[[int, Callable[[], None]], None]
    create_sync: Callable[[SyncObject], None]
    #: A heap was destroyed; its regions follow.
    drop_heap: Callable[[int], None]
    #: The list of live nodes changed.
    members_changed: Callable[[], None]
    #: These ranks have no process; by rank, the node where each was.
    ranks_missing: Callable[[Mapping[int, int]], None]
    #: ``after(seconds, callback)``.
    after: Callable[[float, Callable[[], None]], None]
    #: What all leases together may have (None: no bound), and addresses for one of them.
    lease_bytes: int | None = None
    lease_space: int = MAX_REGION_BYTES


class Coordinator:
    """Answers what only one node may decide.

    Parameters
    ----------
    store
        Regions, objects, ranks.
    members
        Links and live nodes.
    local
        This node.
    ranks
        Ranks of the job; 0 without a launcher.
    """

    def __init__(self, store: MetadataStore, members: Membership, local: LocalNode, ranks: int) -> None:
        self._store = store
        self._members = members
        self._local = local
        self._ranks = ranks
        self._requests = 0
        #: request -> nodes that have not acknowledged, and what comes then.
        self._awaiting: dict[int, tuple[set[int], Callable[[], None]]] = {}
        #: The node that is joining, and those that wait for their turn.
        self._joining: Link | None = None
        self._queue: deque[tuple[Link, meta.Join]] = deque()
        #: Numbers of nodes given so far.
        self._numbers = 1
        #: Regions not announced everywhere, or not filled by their creator: who wants to open them.
        self._unready: dict[int, list[Answer]] = {}
        self._announcing: set[int] = set()
        #: Creator (node, worker) of regions that it has yet to fill.
        self._creators: dict[int, tuple[int, int]] = {}
        #: Worker (node, number) that divides an extent of no heap: it ends with that.
        self._dividers: dict[int, tuple[int, int]] = {}
        #: Ranks of a launched job: the worker (node, number) that holds each, and where those were that
        #: have none any more.
        self._holders: dict[int, tuple[int, int]] = {}
        self._missing: dict[int, int] = {}
        self.leases = Leases(self._regions(), local.lease_bytes, local.lease_space)

    def _regions(self) -> Regions:
        regions = Regions()
        regions.create = self._create
        regions.destroy = self._destroy
        regions.when_ready = self._when_ready
        regions.is_unready = lambda number: number in self._creators
        regions.after = lambda seconds, callback: self._local.after(seconds, callback)
        return regions

    def close(self) -> None:
        """Forget everything."""
        self._store.close()

    # -- questions ---------------------------------------------------------------------------------------

    def ask(self, node: int, ask: meta.Ask, answer: Answer) -> None:
        """Answer a worker's question, now or when it can be answered."""
        try:
            self._decide(node, ask.worker, ask.body, answer)
        except DSMError as error:
            answer(control.Failed(status_of(error), str(error)))

    def _decide(self, node: int, worker: int, body: meta.Question, answer: Answer) -> None:
        store = self._store
        if isinstance(body, control.CreateRegion):
            if body.options.use == "lease":
                raise UsageError('a region of use="lease" is made by CreateLease, with keys')
            self._create((node, worker), body.options, body.ready, answer)
        elif isinstance(body, control.OpenRegion):
            region = store.find_region(body.key)
            refuse_region(region.options)
            self._when_ready(region, answer)
        elif isinstance(body, control.RegionReady):
            self._creators.pop(body.region, None)
            store.mark_ready(body.region)
            self._settle(body.region)
            answer(meta.Finished())
        elif isinstance(body, control.DestroyRegion):
            region = store.find_region(body.key)
            if self._creators.get(region.region) != (node, worker):
                refuse_region(region.options)
            if worker >= 0 and region.options.use == "extent" and region.options.heap is not None:
                raise UsageError(
                    f"region {region.region} is memory of heap {region.options.heap!r}, with blocks of "
                    "others in it; free a block with heap.free(), or end them all with heap.destroy()"
                )
            self._destroy(region.region, lambda: answer(meta.Finished()))
        elif isinstance(body, leasing.Question):
            self.leases.ask((node, worker), body, answer)
        elif isinstance(body, control.OpenSync):
            self._open_sync(body, answer)
        elif isinstance(body, heaps.OpenHeap):
            answer(heaps.FoundHeap(*store.open_heap(body.options, body.given)))
        elif isinstance(body, heaps.FindHeap):
            answer(heaps.FoundHeap(store.find_heap(body.key), False))
        elif isinstance(body, heaps.DestroyHeap):
            self._destroy_heap(body.heap, lambda: answer(meta.Finished()))
        elif isinstance(body, meta.TakeRank):
            rank, size = store.take_rank(body.rank)
            taken = meta.RankTaken(rank, size)
            self._take_rank(rank, (node, worker), body.forked, lambda: answer(taken))
        elif isinstance(body, meta.WorkerGone):
            self._worker_gone(node, body.worker)
            answer(meta.Finished())
        else:
            answer(meta.FoundRegions(store.list_regions()))

    def _create(self, creator: tuple[int, int], options: RegionOptions, ready: bool, answer: Answer) -> None:
        region, created = self._store.create_region(options, tuple(self._members.nodes), ready)
        if not created:
            self._when_ready(region, answer)
            return
        number = region.region
        try:
            self._local.add_region(region)
        except DSMError:
            self._store.destroy_region(number)
            raise
        self._unready[number] = []
        self._announcing.add(number)
        if not ready:
            self._creators[number] = creator
        if options.use == "extent" and options.heap is None:
            self._dividers[number] = creator

        def announced() -> None:
            if number in self._announcing:
                self._announcing.discard(number)
                answer(meta.Found(region, True))
                self._settle(number)
            else:
                answer(_destroyed(region))

        self._tell_all(MetaKind.REGION_ADD, meta.encode(region), number, self._members.links, announced)

    def _when_ready(self, region: Region, answer: Answer) -> None:
        waiting = self._unready.get(region.region)
        if waiting is None:
            answer(meta.Found(region, False))
        else:
            waiting.append(answer)

    def _settle(self, number: int) -> None:
        """Answer who waits for a region, once it is announced and filled; it may be destroyed already."""
        if number in self._announcing or number in self._creators or number not in self._unready:
            return
        region = self._store.find_region(number)
        for answer in self._unready.pop(number, ()):
            answer(meta.Found(region, False))

    def _destroy(self, number: int, done: Callable[[], None]) -> None:
        region = self._store.destroy_region(number)
        self.leases.region_gone(region)
        self._creators.pop(number, None)
        self._dividers.pop(number, None)
        self._announcing.discard(number)
        for answer in self._unready.pop(number, ()):
            answer(_destroyed(region))
        left = 2

        def part() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        self._tell_all(MetaKind.REGION_DROP, b"", number, self._members.links, part)
        self._local.drop_region(number, part)

    def _destroy_heap(self, number: int, done: Callable[[], None]) -> None:
        """End a heap: no node adds to it any more before its regions go."""
        regions = self._store.destroy_heap(number)
        left = len(regions) + 1

        def part() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        self._local.drop_heap(number)
        self._tell_all(MetaKind.HEAP_DROP, b"", number, self._members.links, part)
        for region in regions:
            self._destroy(region.region, part)

    def _open_sync(self, body: control.OpenSync, answer: Answer) -> None:
        described = self._store.open_sync(
            body.kind, body.name, body.value, tuple(self._members.nodes), body.bounded
        )

        def known() -> None:
            answer(meta.FoundSync(described))

        if described.home == self._members.node:
            self._local.create_sync(described)
            known()
        else:
            # Told again when it exists: the home ignores that, and its answer says that it knows.
            self._tell_all(MetaKind.SYNC_ADD, meta.encode(described), 0, [described.home], known)

    def _worker_gone(self, node: int, worker: int) -> None:
        self._workers_lost(lambda each: each == (node, worker))
        self._ranks_lost(lambda holder: holder == (node, worker))
        self.leases.workers_gone(lambda each: each == (node, worker))

    def _workers_lost(self, lost: Callable[[tuple[int, int]], bool]) -> None:
        """End the regions that are of no use without these workers."""
        of_each = {**self._creators, **self._dividers}
        for number, worker in of_each.items():
            if lost(worker):
                self._destroy(number, lambda: None)

    def unready(self) -> list[tuple[Region, tuple[int, int] | None]]:
        """Return the regions that cannot be opened yet, with the worker that has yet to fill each."""
        return [(self._store.find_region(number), self._creators.get(number)) for number in self._unready]

    # -- ranks -------------------------------------------------------------------------------------------

    def _take_rank(self, rank: int, holder: tuple[int, int], forked: bool, taken: Callable[[], None]) -> None:
        """Note who holds a rank of the job: who takes it first.  `taken()` once all know that it is there."""
        if rank >= self._ranks or forked or rank in self._holders:
            taken()
            return
        self._holders[rank] = holder
        if self._missing.pop(rank, None) is None:
            taken()
        else:
            self._tell_ranks(taken)

    def _ranks_lost(self, lost: Callable[[tuple[int, int]], bool]) -> None:
        """Processes are gone: say which ranks are missing now."""
        ranks = [rank for rank, holder in self._holders.items() if lost(holder)]
        for rank in ranks:
            self._missing[rank], _ = self._holders.pop(rank)
        if ranks:
            self._tell_ranks(lambda: None)

    def _tell_ranks(self, told: Callable[[], None]) -> None:
        self._local.ranks_missing(self._missing)
        self._tell_all(MetaKind.RANKS, meta.encode(meta.Ranks(self._missing)), 0, self._members.links, told)

    # -- members -----------------------------------------------------------------------------------------

    def join(self, link: Link, join: meta.Join) -> None:
        """A new node asks to be taken in."""
        if link.node >= 0 or any(link is waiting for waiting, _ in self._queue):
            raise WireError("it asks to join, but has asked before")
        if self._joining is not None:
            self._members.settled(link)  # its time begins when its turn comes
            self._queue.append((link, join))
            return
        try:
            node = self._store.add_member(join.address)
        except DSMError as error:
            refusal = meta.encode(meta.Told(control.Failed(status_of(error), str(error))))
            link.send(self._members.header(MetaKind.REPLY, len(refusal)), refusal)
            link.flush()
            return
        self._joining = link
        self._numbers = node + 1
        self._members.adopt(node, link)
        self._members.expect(
            link, f"it was not connected to every member within {JOIN_TIMEOUT_S:g} s after it was taken in"
        )
        self._members.epoch = self._store.epoch()
        members = [meta.Member(m.node, m.address) for m in self._store.members() if m.node != node]
        live = [m for m in members if m.node in self._members.nodes]
        welcome = meta.Welcome(
            node,
            self._members.epoch,
            self._members.cluster.hex(),
            self._ranks,
            live,
            self._store.list_regions(named_only=False),
        )
        payload = meta.encode(welcome)
        link.send(self._members.header(MetaKind.WELCOME, len(payload)), payload)
        if self._missing:
            ranks = meta.encode(meta.Ranks(self._missing))
            link.send(self._members.header(MetaKind.RANKS, len(ranks)), ranks)
        link.flush()

    def ready(self, link: Link) -> None:
        """The joining node is connected to every member: it is one now."""
        if link is not self._joining:
            raise WireError(f"node {link.node} says that it is ready, but it is not joining")
        self._members.settled(link)
        self._members.nodes = sorted([*self._members.nodes, link.node])
        self._joining = None
        self._announce_members()
        self._next_joiner()

    def node_gone(self, node: int, link: Link) -> None:
        """A member, or the joining node, is lost."""
        self._store.remove_member(node)
        if link is self._joining:
            self._next_joiner()
        self._members.epoch = self._store.epoch()
        self.leases.workers_gone(lambda each: each[0] == node)
        for request, (nodes, then) in list(self._awaiting.items()):
            nodes.discard(node)
            if not nodes and self._awaiting.pop(request, None) is not None:
                then()
        self._workers_lost(lambda each: each[0] == node)
        self._ranks_lost(lambda holder: holder[0] == node)
        self._announce_members()

    def _next_joiner(self) -> None:
        self._joining = None
        while self._queue and self._joining is None:
            link, join = self._queue.popleft()
            if not link.closed:
                self.join(link, join)

    def _announce_members(self) -> None:
        members = self._members
        members.decided = self._numbers if self._joining is None else self._joining.node
        payload = meta.encode(meta.Members(members.epoch, members.nodes, members.decided))
        for link in self._members.links.values():
            link.send(self._members.header(MetaKind.MEMBERS, len(payload)), payload)
        self._local.members_changed()

    # -- acknowledged messages ---------------------------------------------------------------------------

    def _tell_all(
        self, kind: MetaKind, payload: bytes, region: int, nodes: Iterable[int], then: Callable[[], None]
    ) -> None:
        """Send to each of `nodes`; `then()` when all members of them have acknowledged or are lost.

        A node that is joining serves no worker yet, and must not keep the others waiting: it may hang.
        """
        links = [self._members.links[node] for node in nodes if node in self._members.links]
        self._requests += 1
        header = self._members.header(kind, len(payload), self._requests, region)
        for link in links:
            link.send(header, payload or None)
        awaited = {link.node for link in links if link is not self._joining}
        if awaited:
            self._awaiting[self._requests] = (awaited, then)
        else:
            then()

    def acknowledged(self, node: int, request: int) -> None:
        """A node has done what request number `request` said."""
        if request > self._requests:  # 0: what nobody waits for
            raise WireError(f"node {node} acknowledges request {request}, which was never made")
        awaiting = self._awaiting.get(request)
        if awaiting is not None:
            awaiting[0].discard(node)
            if not awaiting[0]:
                del self._awaiting[request]
                awaiting[1]()


def _destroyed(region: Region) -> control.Failed:
    name = region.region if region.options.name is None else repr(region.options.name)
    why = "its creator died, or somebody destroyed it"
    return control.Failed(
        Status.CLOSED, f"region {name} went away before it was filled: {why}; create it again"
    )
