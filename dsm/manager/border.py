"""What a peer may say: messages that are well formed but senseless, told from those that may be handled.

Owns the checks between a link and the engines.  A peer has proven the secret and is trusted with its
own part; but a message that no node in its right mind sends must cost that peer its link (`WireError`),
not this node its life.  So it is checked here, where it is cheap, who speaks for whom, about which
pages, and in answer to what.  What these checks let pass and the engines find impossible all the same is
an invariant of the protocol: `InternalError`.
"""

from __future__ import annotations

from dsm.coherence.messages import Flag, Kind, Message
from dsm.coherence.recovery import Search
from dsm.coherence.region import ModelRegion
from dsm.coherence.release.region import ReleaseRegion
from dsm.coherence.sequential import SequentialRegion
from dsm.errors import UsageError, WireError
from dsm.limits import ADDRESS_ALIGNMENT, MAX_NODES, MAX_WORKERS_PER_NODE
from dsm.manager.metadata.options import MAX_RANK, check_options
from dsm.types import Region
from dsm.wire import membership as meta

_CONFIRM, _DATA, _INVALIDATED, _ABSENT, _LOST = (
    int(k) for k in (Kind.CONFIRM, Kind.DATA, Kind.INVALIDATED, Kind.ABSENT, Kind.LOST)
)
_GRANT, _DIFF, _DIFFED, _DROP, _MOVED = (
    int(k) for k in (Kind.GRANT, Kind.DIFF, Kind.DIFFED, Kind.DROP, Kind.MOVED)
)
_HOME = int(Flag.HOME)
#: What a node is answered by homes (`release`).
_ANSWERS = frozenset((_DATA, _GRANT, _LOST, _MOVED, _DIFFED))
#: Kinds by role: what a directory is asked and answered, and what a requester is told.
_ASKED = frozenset(int(k) for k in (Kind.GET, Kind.AHEAD))
_ANSWERED = frozenset(int(k) for k in (Kind.INVALIDATED, Kind.CONFIRM, Kind.PRESENT, Kind.ABSENT))
_TOLD = frozenset(int(k) for k in (Kind.DATA, Kind.GRANT, Kind.DECLINE, Kind.VOID, Kind.LOST))


def coherence(region: ModelRegion, message: Message, sender: int) -> str | None:
    """Return what is wrong with `sender` saying this about pages of `region`, None when it may."""
    if isinstance(region, ReleaseRegion):
        return _release(region, message, sender)
    assert isinstance(region, SequentialRegion)
    return _sequential(region, message, sender)


def _release(region: ReleaseRegion, message: Message, sender: int) -> str | None:
    """Check what is said of pages that have a home.  Homes move: requests come by way of earlier ones."""
    page, count, node, kind = message.page, message.count, message.node, message.kind
    if kind in _ASKED:
        if region.placement.request_end(page) < page + count and count > region.placement.chunk_pages:
            return f"pages {page}+{count} are more than one block"
        return f"node {sender} passes on what this node asks" if node == sender == region.node else None
    if kind in (_DIFF, _DROP):
        return None if node == sender else f"node {sender} speaks for node {node}"
    if kind in _ANSWERS:
        if node != region.node and kind != _LOST:  # that names who died
            return f"it answers node {node}"
        if kind in (_DATA, _GRANT) and not message.flags & _HOME and message.value > MAX_NODES:
            return f"the home of page {page} is said to be node {message.value - 1}"
        if kind == _MOVED and message.value >= MAX_NODES:
            return f"the home of page {page} is said to be node {message.value}"
        if kind == _DIFFED or (kind == _MOVED and message.value == region.node):
            return None
        request = region.requester.requests.get(message.request)
        if request is not None and not request.page <= page <= page + count <= request.page + request.count:
            return f"pages {page}+{count} answer request {message.request}, which was for others"
        return None
    return "no such message belongs to this consistency"


def _sequential(region: SequentialRegion, message: Message, sender: int) -> str | None:
    page, count, node, kind = message.page, message.count, message.node, message.kind
    placement = region.placement
    if count > 1 and placement.request_end(page) < page + count:
        return f"pages {page}+{count} have more than one directory node, or block"
    if kind in _ASKED or kind in _ANSWERED:
        if node != sender:
            return f"node {sender} speaks for node {node}"
        if placement.directory(page) != region.node:
            return f"page {page} has its directory on node {placement.directory(page)}"
        return _answer_to_directory(region, message) if kind in _ANSWERED else None
    if kind in _TOLD:
        if node != region.node and kind != _LOST:  # that names who died
            return f"it answers node {node}"
        request = region.requester.requests.get(message.request)
        # One that is unknown was ended meanwhile: its late answers find nothing.
        if request is not None and not request.page <= page <= page + count <= request.page + request.count:
            return f"pages {page}+{count} answer request {message.request}, which was for others"
    elif node == region.node:
        return "it takes pages away for the node that has them"
    if kind != _DATA and placement.directory(page) != sender:
        return f"node {sender} is not the directory of page {page}"
    return None


def _answer_to_directory(region: SequentialRegion, message: Message) -> str | None:
    """Check that what a directory is answered answers something that it waits for."""
    page, count, node, kind = message.page, message.count, message.node, message.kind
    busy = region.directory.busy.get(page)
    if isinstance(busy, Search):
        inside = busy.page <= page <= page + count <= busy.page + busy.count
        expected = inside and kind not in (_CONFIRM, _INVALIDATED) and busy.left.get(node, 0) >= count
    elif busy is None or (busy.page, busy.count) != (page, count):
        expected = False
    elif kind == _INVALIDATED:
        expected = bool(busy.awaiting >> node & 1)
    else:
        expected = busy.message.node == node and (
            kind == _CONFIRM or (kind == _ABSENT and busy.source in region.engine.lost)
        )
    return None if expected else f"node {node} answers about pages {page}+{count}, of which it was not asked"


def metadata(body: object, node: int) -> None:
    """Refuse what the coordinator cannot mean.

    Raises
    ------
    WireError
        A value of `body`, told to node number `node`, is out of its bounds.
    """
    if isinstance(body, Region):
        _check_region(body)
    elif isinstance(body, meta.Welcome):
        _check_nodes([*(member.node for member in body.members), body.node], body.node)
        for region in body.regions:
            _check_region(region)
        if len(body.cluster) != 32 or not _is_hexadecimal(body.cluster):
            raise WireError(f"a cluster is said to be called {body.cluster[:40]!r}")
        _check_u32("epoch", body.epoch)
    elif isinstance(body, meta.Members):
        _check_nodes(body.nodes, node)
        _check_u32("epoch", body.epoch)
        if not 0 <= body.decided <= MAX_NODES:
            raise WireError(f"numbers of nodes are said to be decided up to {body.decided}")
    elif isinstance(body, meta.Ranks):
        for rank, where in body.missing.items():
            if not 0 <= rank <= MAX_RANK or not 0 <= where < MAX_NODES:
                raise WireError(f"rank {rank} is said to have been on node {where}")


def question(ask: meta.Ask) -> None:
    """Refuse a question in the name of a worker that no node has."""
    if not -1 <= ask.worker < MAX_WORKERS_PER_NODE:
        raise WireError(f"a question of worker {ask.worker}; their numbers are below {MAX_WORKERS_PER_NODE}")


def _check_nodes(nodes: list[int], node: int) -> None:
    if node not in nodes or 0 not in nodes or any(not 0 <= each < MAX_NODES for each in nodes):
        raise WireError(f"the nodes of the cluster are said to be {nodes[: MAX_NODES + 1]}")
    if len(set(nodes)) != len(nodes):
        raise WireError("a node of the cluster is named twice")


def _check_region(region: Region) -> None:
    members = region.members
    if not members or list(members) != sorted(set(members)) or not 0 <= members[0] <= members[-1] < MAX_NODES:
        raise WireError(f"region {region.region} is said to be kept by nodes {members[:8]}")
    _check_u32("region", region.region)
    try:
        check_options(region.options, members)
    except UsageError as error:
        raise WireError(f"region {region.region} is none that can be: {error}") from None
    address = region.address
    if address <= 0 or address % ADDRESS_ALIGNMENT or address + region.size > 1 << 47:
        raise WireError(f"region {region.region} is said to lie at {address:#x}")


def _check_u32(what: str, value: int) -> None:
    if not 0 <= value < 1 << 32:
        raise WireError(f"{what} {value} is no number of 32 bits")


def _is_hexadecimal(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)
