"""The coherence engine of a node: the one door through which protocol state changes.

Owns the regions of this node and everything under way in them.  It is told what happened (a fault,
a message, an acknowledgement, the time) and says what to do in `effects`, which the driver performs
strictly in order: `Raise` only after the frames it names are complete, `SendPages` and `Discard`
only after the workers acknowledged the `Lower` before it.  No clock, socket, thread or randomness.

A method that finds an impossible state raises `InternalError` with the story of the page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dsm.coherence.bounded.region import BoundedRegion
from dsm.coherence.hold import Hold
from dsm.coherence.messages import Effect, Kind, Message, Runs
from dsm.coherence.region import ModelRegion
from dsm.coherence.release.fence import Fence
from dsm.coherence.release.region import ReleaseRegion
from dsm.coherence.rows import Rows
from dsm.coherence.sequential import SequentialRegion
from dsm.errors import InternalError, Status
from dsm.types import Region

#: Messages remembered, for the story of a page.  Few: remembered objects are cold when they are reused.
_STORY = 64


class Engine:
    """Coherence of all regions on one node.

    Parameters
    ----------
    node
        This node's number, 0 to 63.
    patience
        How many calls of `age` a wait for a page survives; 0: as many as come.
    """

    def __init__(self, node: int, patience: int = 0) -> None:
        self.node = node
        self.patience = patience
        #: Calls of `age` so far.
        self.ages = 0
        #: Nodes that were declared dead.
        self.lost: set[int] = set()
        #: What the driver has to do, oldest first; `take` empties it (regions refer to this very list).
        self.effects: list[Effect] = []
        #: Messages from one role of this node to another.
        self.inbox: deque[Message] = deque()
        self.regions: dict[int, ModelRegion] = {}
        #: Releases and acquires, of all `release` regions together.
        self.fence = Fence(self)
        #: Nanoseconds, as the driver last said.
        self.now = 0
        self.hold = Hold()
        #: Regions whose holder may go on with what it held back, once the step under way is complete.
        self._to_resume: list[ModelRegion] = []
        self._requests = 0
        self._tokens = 0
        self._lowering: dict[int, ModelRegion] = {}
        self._recent: deque[Message] = deque(maxlen=_STORY)
        #: Numbers of regions where a demand waits for time to pass.
        self.held_back: set[int] = set()

    # -- regions -----------------------------------------------------------------------------------------

    def add_region(self, region: Region) -> None:
        """Begin to keep pages of `region`."""
        if region.options.consistency == "release":
            joined = ReleaseRegion(self, region)
            self.regions[region.region] = joined
            self.fence.regions[region.region] = joined
        else:
            made = BoundedRegion if region.options.consistency == "bounded" else SequentialRegion
            self.regions[region.region] = made(self, region)

    def drop_region(self, number: int) -> None:
        """Forget a destroyed region: waits end with `CLOSED`, late messages find nothing."""
        region = self.regions.pop(number, None)
        self.held_back.discard(number)
        self.fence.regions.pop(number, None)
        if region is not None:
            region.end_all(Status.CLOSED)
            self.fence.look()

    def node_lost(self, node: int, now: int) -> None:
        """The cluster has declared a node dead; no message of it comes any more.

        Pages that are here stay.  Whoever needs what went away with it ends with `PAGE_LOST`: pages whose
        directory it was, and pages of which it had the only copy.
        """
        if node in self.lost:
            return
        self.now = now
        self.lost.add(node)
        for number in list(self.regions):
            self.regions[number].node_lost(node)
            self._drain()
        self.fence.look()

    def age(self, now: int) -> None:
        """A fixed part of the time that a wait may take has passed: those that are due end with PAGE_TIMEOUT.

        Counted, not measured: a node that was stopped itself has not waited meanwhile.
        """
        self.now = now
        self.ages += 1
        if self.patience:
            for region in self.regions.values():
                region.expire(self.ages - self.patience)
            self._drain()

    # -- this node's workers -----------------------------------------------------------------------------

    def fault(self, region: int, page: int, write: bool, waiter: int, worker: int, ip: int, now: int) -> None:
        """A worker's thread touched a page without the access it needs; ends with `Wake`."""
        self.now = now
        self.regions[region].requester.fault(page, write, waiter, worker, ip)
        if self.inbox or self._to_resume:
            self._drain()

    def prefetch(self, region: int, page: int, count: int, write: bool, waiter: int, now: int) -> None:
        """Bring pages here; `Wake` when each of them has been here."""
        self.now = now
        self.regions[region].bulks.begin(page, count, write, waiter, False)
        self._drain()

    def pin(self, region: int, page: int, count: int, write: bool, waiter: int, now: int) -> None:
        """Bring pages here and hold them; `Wake` when all are here, until `unpin`."""
        self.now = now
        self.regions[region].bulks.begin(page, count, write, waiter, True)
        self._drain()

    def unpin(self, region: int, page: int, count: int, write: bool, now: int) -> None:
        """End a pin with the same arguments."""
        self.now = now
        self.regions[region].unpin(page, count, write)
        self._drain()

    def rehome(self, region: int, page: int, count: int, waiter: int, now: int) -> bool:
        """Bring the homes of pages here, ends with `Wake`; False when this region's do not move."""
        self.now = now
        found = self.regions[region]
        if not isinstance(found, ReleaseRegion):
            return False
        found.rehomings.begin(page, count, waiter)
        self._drain()
        return True

    def cancel(self, waiter: int, now: int) -> bool:
        """End a wait with `CANCELLED`; False when it is not waiting."""
        self.now = now
        found = any(region.cancel(waiter) for region in self.regions.values())
        self._drain()
        return found

    def worker_gone(self, waits: Callable[[int], bool], worker: int, now: int) -> None:
        """A worker is gone: forget the waiters that `waits` tells, and how it read ahead."""
        self.now = now
        self.hold.forget(waits, now)
        for region in self.regions.values():
            region.forget(waits)
            region.read_ahead.forget(worker)
            region.resume()
        self._drain()

    def touched(self, region: int, page: int, worker: int, now: int) -> None:
        """A worker used a marked page for the first time."""
        self.now = now
        if region in self.regions:
            self.regions[region].requester.touched(page, worker)
            self._drain()

    @property
    def unapplied(self) -> dict[int, int]:
        """Waiters that were woken and are not known to have mapped their page."""
        return self.hold.unapplied

    def applied(self, waiter: int, now: int) -> None:
        """A woken thread has mapped its page: its hold time starts."""
        self.hold.applied(waiter, now)

    # -- other nodes -------------------------------------------------------------------------------------

    def message(self, message: Message, now: int) -> None:
        """Take a message of any kind but DATA."""
        self.now = now
        self.inbox.append(message)
        self._drain()

    def accepts(self, message: Message) -> bool:
        """A DATA header arrived: True when its payload goes into the frames, False for scratch."""
        region = self.regions.get(message.region)
        if region is None:
            return False
        request = region.requester.requests.get(message.request)
        if request is None:
            return False
        rest = request.rest
        return rest is None or rest.issuperset(range(message.page, message.page + message.count))

    def wanted_runs(self, message: Message) -> list[tuple[int, int]]:
        """Pages (page, count) of a DATA message that are still to be installed."""
        region = self.regions.get(message.region)
        return [] if region is None else region.requester.live_runs(message)

    def received(self, message: Message, now: int) -> None:
        """The payload of a DATA message is complete in the frames of its `wanted_runs`."""
        self.now = now
        region = self.regions.get(message.region)
        if region is not None:
            region.requester.install(message)
            if self.inbox or self._to_resume:
                self._drain()

    def diff_arrived(self, message: Message, runs: Runs, payload: object, now: int) -> None:
        """A DIFF is here, with its whole payload, which says something of the pages `runs`."""
        self.now = now
        region = self.regions.get(message.region)
        if isinstance(region, ReleaseRegion):
            self._recent.append(message)
            region.home.patch(message, runs, payload)
            self._drain()

    # -- the driver --------------------------------------------------------------------------------------

    def lowered(self, token: int, now: int) -> None:
        """The `Lower` with this token is done: every worker has acknowledged."""
        self.now = now
        region = self._lowering.pop(token, None)
        if region is not None and region.number in self.regions:
            region.lowered(token)
            if self.inbox or self._to_resume:
                self._drain()

    def diffed(self, region: int, request: int, changed: Runs, parts: int, now: int) -> None:
        """The driver has performed a `Diff`: these of its pages differed from their twins.

        `parts` counts the pages that its messages name: one that two messages share counts twice.
        """
        self.now = now
        found = self.regions.get(region)
        if isinstance(found, ReleaseRegion):
            found.writer.diffed(request, changed, parts)
            self._drain()

    def look_soon(self) -> None:
        """A thread got its page: what its instruction kept meanwhile may be wanted by others."""
        for number in self.held_back:
            self.regions[number].look_soon()

    def tick(self, now: int) -> None:
        """Time has passed: what was held back may go on."""
        self.now = now
        for number in list(self.held_back):
            self.regions[number].resume()
        self._drain()

    @property
    def deadline(self) -> int | None:
        """When `tick` is next needed, in the driver's nanoseconds; None when it is not."""
        if not self.held_back:
            return None
        regions = [self.regions[number] for number in self.held_back]
        return min((r.deadline for r in regions if r.deadline is not None), default=None)

    def state(self, region: int, page: int) -> int:
        """Return the `State` of a page on this node."""
        return self.regions[region].table.state[page]

    def rows(self, region: int, page: int, count: int, now: int) -> Rows:
        """Return what this node knows of these pages, for the page table."""
        self.now = now
        return self.regions[region].rows(page, count)

    def story(self, region: int, page: int) -> str:
        """Return what this node knows and lately heard of a page, for an error report."""
        lines = []
        if region in self.regions:
            lines.append(f"node {self.node}, region {region}: {self.regions[region].describe(page)}")
        lines += [_shown(m) for m in self._recent if m.region == region and m.page <= page < m.page + m.count]
        return "\n".join(lines)

    def recent(self) -> list[str]:
        """Return the last messages that this node took, the latest last, for an error report."""
        return [f"region {m.region}{_shown(m)}" for m in self._recent]

    def take(self) -> list[Effect]:
        """Return the effects so far and forget them."""
        effects = self.effects.copy()
        self.effects.clear()
        return effects

    # -- for the regions ---------------------------------------------------------------------------------

    @property
    def sequential(self) -> dict[int, SequentialRegion]:
        """The regions that have a directory and holders."""
        return {number: r for number, r in self.regions.items() if isinstance(r, SequentialRegion)}

    @property
    def release(self) -> dict[int, ReleaseRegion]:
        """The regions whose pages have homes."""
        return self.fence.regions

    @property
    def last_request(self) -> int:
        """The number that `next_request` gave last."""
        return self._requests

    def next_request(self) -> int:
        """Return a request number that no live request has."""
        self._requests = number = (self._requests + 1) & 0xFFFFFFFF
        return number

    def next_token(self, region: ModelRegion) -> int:
        """Return a token for a `Lower` of that region."""
        self._tokens += 1
        self._lowering[self._tokens] = region
        return self._tokens

    def resume_later(self, region: ModelRegion) -> None:
        """Let the holder go on with what was held back: not in the middle of what a role is doing."""
        if region not in self._to_resume:
            self._to_resume.append(region)

    def _drain(self) -> None:
        inbox = self.inbox
        regions = self.regions
        recent = self._recent.append
        while inbox or self._to_resume:
            if not inbox:
                resumed = self._to_resume.pop(0)
                if resumed.number in regions:
                    resumed.resume()
                continue
            message = inbox.popleft()
            region = regions.get(message.region)
            if region is None:
                continue
            recent(message)
            try:
                region.message(message)
            except InternalError:
                inbox.clear()
                self._to_resume.clear()
                raise


def _shown(m: Message) -> str:
    name = Kind(m.kind).name if m.kind in set(Kind) else f"kind {m.kind}"
    return f"  {name} {m.page}+{m.count} request {m.request} of node {m.node} {m.flags:#x}"
