"""What must hold of release consistency when a simulation rests.

* nothing is under way, and every log is within its bound;
* every page has one home among the living, or none while nobody has touched it;
* a copy is in its home's copyset; a page is writable elsewhere only with a twin;
* *clean*, that is after a barrier of all threads after which nobody wrote: no page is dirty, every copy is
  what its home has, and that is what was written last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsm.coherence.release.region import ReleaseRegion
from dsm.coherence.states import State
from dsm.testing.simulation.cluster import words_for
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.release.frames import LiveRegion
from dsm.testing.simulation.release.truth import ReleaseTruth
from dsm.testing.simulation.world import Violation
from dsm.types import Region

if TYPE_CHECKING:
    from dsm.testing.simulation.release.cluster import ReleaseCluster

_WANTED = {State.INVALID: 0, State.SHARED: 1, State.EXCLUSIVE: 3}


def unfinished(region: ReleaseRegion) -> str:
    """Say what is still under way in an engine's region; empty when nothing is."""
    requester, home, acquirer = region.requester, region.home, region.acquirer
    found = {
        "requests": requester.requests,
        "pulls": requester.pulls,
        "waiting": requester.waiting,
        "prefetch and pin": region.bulks.under_way,
        "Lower of a round": region.writer.lowering,
        "diffs": region.writer.flushes,
        "Lower of an acquire": acquirer.lowering,
        "diffs of an acquire": acquirer.flushing,
        "acquire that waits for pins": () if acquirer._pinned is None else acquirer._pinned,
        "requests at the home": home.queue,
        "Lower of the home": home.lowering,
        "diffs passed on": home._forwarded,
        "pins": region.pins,
    }
    return words_for(found)


def check_fence(node: Node, bounds: tuple[int, int]) -> None:
    """Releases and acquires are done, and the log has not grown beyond its bound."""
    fence = node.engine.fence
    if not fence.is_idle:
        raise Violation(f"node {node.number} rests in the middle of a release or acquire")
    kept = fence.log._kept
    longest = max((len(intervals) for intervals in kept.values()), default=0)
    runs = sum(interval.size for intervals in kept.values() for interval in intervals)
    if longest > bounds[0] or (runs > bounds[1] and longest > 1):
        raise Violation(f"node {node.number}: its log has {longest} intervals of a node, {runs} runs")


def check_region(cluster: ReleaseCluster, region: Region, *, clean: bool) -> None:
    """Check one region on all nodes."""
    for page in range(region.pages):
        _check_page(cluster, region.region, page, clean)


def _check_page(cluster: ReleaseCluster, number: int, page: int, clean: bool) -> None:
    truth = cluster.truths[number]
    assert isinstance(truth, ReleaseTruth)
    nodes = cluster.membership.survivors()
    where = f"r{number} p{page}"
    homes = [node for node in nodes if node.engine.fence.regions[number].placement.is_mine(page)]
    if len(homes) > 1:
        raise Violation(f"{where}: its home is on nodes {[node.number for node in homes]}")
    home = homes[0] if homes else None
    for node in nodes:
        _check_copy(node, home, number, page, where)
    if not clean or home is None:
        return
    frame = home.regions[number].frames[page]
    if home.engine.state(number, page) == State.INVALID:
        frame = [truth.fill] * truth.words
    _check_bytes(cluster, truth, page, frame, f"{where}: its home, node {home.number}, has")
    for node in nodes:
        state = node.engine.state(number, page)
        if node is home or state == State.INVALID:
            continue
        here = node.regions[number]
        assert isinstance(here, LiveRegion)
        if state == State.EXCLUSIVE and here.twins[page] != here.frames[page]:
            raise Violation(f"{where}: node {node.number} has not sent what it wrote before a barrier")
        # What the dead sent home and did not release is nobody's concern.
        if here.frames[page] != frame and truth.orderly:
            raise Violation(f"{where}: node {node.number} has an old copy after a barrier")
        _check_bytes(cluster, truth, page, here.frames[page], f"{where}: node {node.number} has")


def _check_bytes(cluster: ReleaseCluster, truth: ReleaseTruth, page: int, frame: list[int], who: str) -> None:
    thread = cluster.threads[0].number
    for offset, byte in enumerate(frame):
        if page not in truth.tainted and not truth.is_latest(page, offset, byte, thread):
            raise Violation(f"{who} {byte} at byte {offset} after a barrier, which is overwritten")


def _check_copy(node: Node, home: Node | None, number: int, page: int, where: str) -> None:
    state = State(node.engine.state(number, page))
    frames = node.regions[number]
    assert isinstance(frames, LiveRegion)
    wanted = frames.wanted[page] & 3
    if wanted != _WANTED.get(state, -1):
        raise Violation(f"{where}: node {node.number} is {state.name}, wanted {wanted}")
    is_dirty = state == State.EXCLUSIVE
    # At home only what was made writable in case it is written has a twin.
    if (page in frames.twins and not is_dirty) or (
        is_dirty and node is not home and page not in frames.twins
    ):
        raise Violation(f"{where}: node {node.number} is {state.name}, twin: {page in frames.twins}")
    if state == State.INVALID or node is home or home is None:
        return
    copyset = home.engine.regions[number].table.copyset[page]
    if not copyset >> node.number & 1:
        raise Violation(
            f"{where}: node {node.number} is {state.name}, but not in the copyset {copyset:#x} of its home, "
            f"node {home.number}"
        )
