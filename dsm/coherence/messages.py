"""What coherence engines say to each other, and what an engine asks of its driver.

Owns the message and effect types of every consistency model.  Messages go to an engine on another
node (or to this one); effects go to the driver: the manager over real sockets and pagers, or the
simulator.  Nothing here acts.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from dsm.vector_time import Time

#: Runs of pages: an array of shape (n, 2), each row (page, count), ascending, not touching.
Runs: TypeAlias = npt.NDArray[np.int64]


class Kind(IntEnum):
    """Kinds of coherence messages.  R requester, D directory, O owner, C another holder, H home, W writer."""

    #: R to D: give me these pages.  Answered by `DATA` or `GRANT` for every page.
    GET = 1
    #: R to D: give me what is at hand of these pages; nobody waits.  Never confirmed.
    AHEAD = 2
    #: D to O: send these pages to `node`.
    FETCH = 3
    #: D to C: give your copies up.
    INVALIDATE = 4
    #: C to D: my workers cannot reach these pages any more.
    INVALIDATED = 5
    #: O to R: the pages, as payload.
    DATA = 6
    #: D to R: you may have these pages; no data: you have a copy, or (`FRESH`) they were never touched.
    GRANT = 7
    #: R to D: installed (the answer to `DATA` with the flag of that name).
    CONFIRM = 8
    #: D to R: not these pages (answer to `AHEAD`).
    DECLINE = 9
    #: D to R: O died before it confirmed anything; give this request up unless you have installed it.
    #: Answered by `ABSENT`, or by the `CONFIRM` that is on its way already.
    VOID = 10
    #: D to C: the owner of these pages died; which of them do you have?
    LOCATE = 11
    #: C to D: I have these (answer to `LOCATE`).
    PRESENT = 12
    #: C or R to D: I do not have these (answer to `LOCATE` and `VOID`).
    ABSENT = 13
    #: D to R: these pages went away with `node`.
    LOST = 14
    #: W to H: bytes of these pages that W has changed, as payload (`release`).  Answered by `DIFFED`.
    DIFF = 15
    #: H to W: the bytes are in the home's frames.
    DIFFED = 16
    #: R to H: I have no copy of these pages any more.
    DROP = 17
    #: Old H or arbiter to everybody concerned: the home of these pages is `value`.
    MOVED = 18


class Flag(IntFlag):
    """Qualifies a message."""

    #: For writing: the one who gets the page is its only holder.
    WRITE = 1
    #: The requester has a copy of these pages.
    HAVE = 2
    #: The pages were never touched: the receiver fills its frames itself.
    FRESH = 4
    #: Belongs to an `AHEAD`: not confirmed, void when an invalidation overtakes it.
    SPECULATIVE = 8
    #: Comes from another node than the directory: the requester confirms to it that it installed.
    CONFIRM = 16
    #: Asks for the home of the pages, or (with the pages, or `FRESH`) gives it.
    HOME = 32


class Message(msgspec.Struct, frozen=True, gc=False):
    """One coherence message.  `request` and `node` are the requester's throughout a transaction."""

    kind: int
    region: int
    page: int
    count: int
    request: int
    #: The requester; of an answer to a directory, who answers; of `LOST`, the node that died.
    node: int
    flags: int = 0
    #: What else the kind says: `DATA`, `GRANT` of `release` the home, or the copyset that goes with `HOME`;
    #: `GET`, `AHEAD`, `FETCH`, `DATA` of `bounded` when R asked, by its own clock (0: for the first time).
    value: int = 0


class Level(IntEnum):
    """Access a worker may have to a page, as it stands in the wanted and applied tables."""

    NONE = 0
    READ = 1
    WRITE = 3


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send `message` to `node` (never this one).  Messages to one node arrive in order."""

    node: int
    message: Message


class SendPages(msgspec.Struct, frozen=True, gc=False):
    """Send `message` with the frames of its pages as payload, in order with `Send`.

    The frames stay frozen (not written, not discarded) until their last byte is in the kernel.
    """

    node: int
    message: Message
    #: Workers go on writing: send a copy made now, in which each aligned word of eight bytes is whole.
    live: bool = False


class Lower(msgspec.Struct, frozen=True, gc=False):
    """Lower the wanted level of these pages; `Engine.lowered(token)` once no worker has more than `level`."""

    region: int
    page: int
    count: int
    level: int
    token: int


class Fill(msgspec.Struct, frozen=True, gc=False):
    """Write the region's fill pattern into these frames (zeros: make sure that they read as zeros)."""

    region: int
    page: int
    count: int


class Raise(msgspec.Struct, frozen=True, gc=False):
    """Raise the wanted level of these pages to `level`: their frames are complete.

    `mark`, when it is not -1, is the page whose first use by a worker is to be told by `Engine.touched`.
    """

    region: int
    page: int
    count: int
    level: int
    mark: int = -1


class Lease(msgspec.Struct, frozen=True, gc=False):
    """Until `end` (nanoseconds of the driver's clock) workers may read these pages, once they are raised."""

    region: int
    page: int
    count: int
    end: int


class Wake(msgspec.Struct, frozen=True, gc=False):
    """The fault or call `waiter` is over, with a `dsm.errors.Status`."""

    waiter: int
    status: int
    #: The node that is to blame for it; -1 when none is, or it is not known.  Of a call that ends well, its
    #: result less 1.
    peer: int = -1


class Discard(msgspec.Struct, frozen=True, gc=False):
    """These frames hold nothing of value any more: their memory may be returned."""

    region: int
    page: int
    count: int


class LowerRuns(msgspec.Struct, frozen=True, gc=False):
    """`Lower` for many runs of pages at once; one `Engine.lowered(token)` for all of them."""

    region: int
    runs: Runs
    level: int
    token: int


class Twin(msgspec.Struct, frozen=True, gc=False):
    """Copy these frames, which no worker may write yet, to their twins.  `Raise` to WRITE follows."""

    region: int
    page: int
    count: int


class Diff(msgspec.Struct, frozen=True, gc=False):
    """Compare these frames with their twins and send what has changed to `node`, in `DIFF` messages.

    Nothing is sent when `node` is this one: its frames are those of the home.

    One snapshot of each frame serves for the comparison, for the bytes that are sent and, if `keep`, for
    the new twin; otherwise the twin ends.  Unless `keep`, no worker may write the pages.  The driver calls
    `Engine.diffed(region, request, changed, parts)` before the next effect.
    """

    node: int
    region: int
    runs: Runs
    request: int
    keep: bool = False


class Apply(msgspec.Struct, frozen=True, gc=False):
    """Store the changed bytes of these pages, and no other byte, from the payload of a `DIFF`."""

    region: int
    runs: Runs
    payload: object


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Send what the payload of a `DIFF` says of these pages on to `node`, under the same header."""

    node: int
    message: Message
    runs: Runs
    payload: object


class Released(msgspec.Struct, frozen=True, gc=False):
    """The release `ticket` is done: writes are at their homes, notices in the log up to `time`."""

    ticket: int
    time: Time


class Acquired(msgspec.Struct, frozen=True, gc=False):
    """The acquire `ticket` is done: no worker of this node can read what happened before it as it was."""

    ticket: int


Effect = (
    Send
    | SendPages
    | Lower
    | LowerRuns
    | Fill
    | Raise
    | Lease
    | Wake
    | Discard
    | Twin
    | Diff
    | Apply
    | Forward
    | Released
    | Acquired
)
