"""The driver of the coherence engine: its effects on real links, frames and workers.

Owns the frames of all regions and the payloads on their way in.  Performs effects strictly in the
engine's order.  A payload goes straight from the socket into its frames; when part of it is voided
meanwhile, the rest goes to scratch memory, and only what is still wanted is copied (order of
operations, 5).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from dsm._native import Board
from dsm.coherence.engine import Engine
from dsm.coherence.messages import Discard, Fill, Kind, Lease, Lower, Message, Raise, Send, SendPages, Wake
from dsm.errors import LimitError, Status, WireError
from dsm.log import logger
from dsm.manager import border, room
from dsm.manager.frames import Frames
from dsm.manager.link import Link
from dsm.manager.pager import SLOT_BITS, SignalPager
from dsm.manager.release import ReleaseDriver
from dsm.types import Region
from dsm.wire.header import Fields, pack_coherence, unpack_coherence

_FETCH, _INVALIDATE = int(Kind.FETCH), int(Kind.INVALIDATE)
_DATA, _CONFIRM, _DIFF = int(Kind.DATA), int(Kind.CONFIRM), int(Kind.DIFF)


#: A waiter that is no worker's.
NOBODY = 0xFFFF << SLOT_BITS
#: Between two parts of memory that is freed.
FREE_PAUSE_NS = 1_000_000


class _Payload:
    """Pages on their way in over one link."""

    __slots__ = ("direct", "message", "scratch", "target")

    def __init__(self, message: Message, target: memoryview | None, scratch: bytearray | None) -> None:
        self.message = message
        #: The frames, while they are the sink.
        self.target = target
        self.scratch = scratch
        #: Payload bytes that went straight into the frames.
        self.direct = 0


class Coherence:
    """Pages of one node.

    Parameters
    ----------
    node
        This node's number.
    board
        The node's board.
    links
        Live links by node number; the membership keeps it.
    patience
        See `Engine`.
    """

    def __init__(self, node: int, board: Board, links: dict[int, Link], patience: int) -> None:
        self.engine = Engine(node, patience)
        self.pager = SignalPager(board, self._lowered)
        self.frames: dict[int, Frames] = {}
        self.epoch = 0
        #: Live links by node number; the membership keeps it.
        self.links = links
        self._payloads: dict[Link, _Payload] = {}
        #: Memory in which the last long diff arrived: fresh memory costs more than what is done with it.
        self._spare = bytearray()
        #: Regions whose discarded frames are to be returned.
        self._reclaim: set[int] = set()
        #: Frames of destroyed regions that a socket still refers to.
        self._dying: list[Frames] = []
        #: What to call when a region's workers have lost access, by the negative token of its lowering.
        self._drops: dict[int, Callable[[], None]] = {}
        self._performing = False
        #: Pins that are not granted yet, by their waiter: (region, page, count, write).
        self._pinning: dict[int, tuple[int, int, int, int]] = {}
        #: Called as ``(worker, pin)`` when a pin was granted.
        self.on_pinned: Callable[[int, tuple[int, int, int, int]], None] = lambda worker, pin: None
        self._past_invalidations = 0
        self.pages_in = self.pages_out = self.bytes_in = self.bytes_out = 0
        #: How each effect is performed.
        self.effects: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            SendPages: self._send_pages,
            Lower: self._lower,
            Fill: self._fill,
            Raise: self._raise,
            Lease: self._lease,
            Wake: self._wake,
            Discard: self._discard,
        }
        self.release = ReleaseDriver(self)

    # -- regions -----------------------------------------------------------------------------------------

    def add_region(self, region: Region) -> None:
        """Begin to keep the pages of `region`; nothing happens when that is so already.

        Raises
        ------
        LimitError
            The system does not give this process what a region needs.
        """
        if region.region not in self.frames:
            try:
                room.check(region, self.engine.node)
                frames = Frames(region)
                try:
                    self.pager.add_region(frames)
                    self.engine.add_region(region)
                except BaseException:
                    self.pager.drop_region(region.region)
                    frames.close()
                    raise
            except (OSError, MemoryError) as error:
                reason = room.refusal(region, self.engine.node, len(self.frames), error)
                raise LimitError(reason) from None
            self.frames[region.region] = frames
            self.perform()
            name = region.options.name
            logger.info("region %d (%s): %d bytes", region.region, name or "anonymous", region.size)

    def drop_region(self, number: int, done: Callable[[], None]) -> None:
        """End a region on this node; `done()` once no worker here can reach its pages."""
        frames = self.frames.pop(number, None)
        if frames is None:
            done()
            return
        for link, payload in self._payloads.items():
            if payload.message.region == number:
                link.reader.sink(None)
                payload.target = None
        self._past_invalidations += self.engine.regions[number].invalidations
        self.engine.drop_region(number)
        self.perform()
        self.release.drop_region(number)
        token = -number

        def free() -> None:
            logger.info("region %d is destroyed", number)
            self.pager.drop_region(number)
            self._dying.append(frames)
            done()

        self._drops[token] = free
        self.pager.lower(number, 0, frames.region.pages, 0, token)

    # -- what happens ------------------------------------------------------------------------------------

    def fault(self, region: int, page: int, write: bool, waiter: int, worker: int, ip: int) -> None:
        """A worker's thread waits for a page."""
        frames = self.frames.get(region)
        if frames is None or page >= frames.region.pages:
            # The board is the worker's memory, too: its own stray writes may stand there.
            self.pager.wake(waiter, Status.CLOSED if frames is None else Status.USAGE)
            return
        self.engine.fault(region, page, write, waiter, worker, ip, time.monotonic_ns())
        self.perform()

    def touched(self, region: int, page: int, worker: int) -> None:
        """A worker used a marked page for the first time."""
        if region not in self.frames or page >= self.frames[region].region.pages:
            return
        self.engine.touched(region, page, worker, time.monotonic_ns())
        self.perform()

    def bulk(self, region: int, page: int, count: int, write: bool, waiter: int, pin: bool) -> Status:
        """Bring pages here, and hold them for a pin; OK when `wake` will follow."""
        frames = self.frames.get(region)
        if frames is None:
            return Status.CLOSED
        if count < 1 or page + count > frames.region.pages:
            return Status.USAGE
        if pin:
            self._pinning[waiter] = (region, page, count, int(write))
        bring = self.engine.pin if pin else self.engine.prefetch
        bring(region, page, count, write, waiter, time.monotonic_ns())
        self.perform()
        return Status.OK

    def claim(self, region: int, page: int, count: int) -> None:
        """Make pages this node's, as far as it keeps their directory; nobody waits for it."""
        self.engine.prefetch(region, page, count, True, NOBODY, time.monotonic_ns())
        self.perform()

    def rehome(self, region: int, page: int, count: int, waiter: int) -> Status:
        """Bring the homes of pages here; OK when `wake` will follow."""
        frames = self.frames.get(region)
        if frames is None:
            return Status.CLOSED
        if count < 1 or page + count > frames.region.pages:
            return Status.USAGE
        found = self.engine.rehome(region, page, count, waiter, time.monotonic_ns())
        self.perform()
        return Status.OK if found else Status.USAGE

    def unpin(self, region: int, page: int, count: int, write: int) -> None:
        """End a pin; what it kept waiting goes on."""
        if region in self.frames:
            self.engine.unpin(region, page, count, bool(write), time.monotonic_ns())
            self.perform()

    def cancel(self, waiter: int) -> None:
        """A thread does not want to wait any more."""
        self.engine.cancel(waiter, time.monotonic_ns())
        self.perform()

    def worker_gone(self, worker: int, pins: Iterable[tuple[int, int, int, int]]) -> None:
        """A worker died or left: it waits, holds and may access nothing any more."""
        now = time.monotonic_ns()
        self._pinning = {w: pin for w, pin in self._pinning.items() if w >> SLOT_BITS != worker}
        self.engine.worker_gone(lambda waiter: waiter >> SLOT_BITS == worker, worker, now)
        for pin in pins:
            self.unpin(*pin)
        self.pager.worker_gone(worker)
        self.perform()

    def node_lost(self, node: int) -> None:
        """Another node was declared dead."""
        self.engine.node_lost(node, time.monotonic_ns())
        self.perform()

    def age(self) -> None:
        """A fixed part of the time that a wait for a page may take has passed."""
        self.engine.age(time.monotonic_ns())
        self.perform()

    @property
    def invalidations(self) -> int:
        """Pages that this node gave up because another one writes them."""
        return self._past_invalidations + sum(r.invalidations for r in self.engine.regions.values())

    def message(self, link: Link, fields: Fields, payload: memoryview) -> None:
        """Take a whole message of another node."""
        message = self._checked(link, fields)
        engine = self.engine
        kind = message.kind
        if kind == _DATA:
            self._data(message, payload)
            return
        if kind == _DIFF:
            frames = self.frames.get(message.region)
            if frames is not None:
                self.release.arrived(message, payload, frames)
            return
        if kind in (_FETCH, _INVALIDATE):
            self.poll_applied()
        engine.message(message, time.monotonic_ns())
        self.perform()

    def _data(self, message: Message, payload: memoryview) -> None:
        """Pages arrived as a whole: write them into their frames and install them."""
        frames = self._frames_of(message, len(payload))
        if frames is None:
            return
        size = frames.page_size
        write = frames.store if frames.live else frames.write
        for page, count in self.engine.wanted_runs(message):
            low = (page - message.page) * size
            write(page, payload[low : low + count * size])
        self._installed(message, frames)

    def pages(self, link: Link, fields: Fields) -> None:
        """The header of a message with pages arrived: say where they belong."""
        message = self._checked(link, fields)
        target: memoryview | None = None
        scratch: bytearray | None = None
        if message.kind == _DIFF:
            frames = self.frames.get(message.region)
        elif message.kind == _DATA:
            frames = self._frames_of(message, fields[7])
        else:
            raise WireError(f"a message of kind {message.kind} has pages: it may not")
        if frames is not None and message.kind == _DIFF:
            scratch, self._spare = self._spare, bytearray()
            if len(scratch) < fields[7]:
                scratch = bytearray(fields[7])
        elif frames is not None and not frames.live and self.engine.accepts(message):
            target = frames.view(message.page, message.count)
        elif frames is not None and self.engine.wanted_runs(message):
            scratch = bytearray(fields[7])
        self._payloads[link] = _Payload(message, target, scratch)
        link.reader.sink(target if scratch is None else memoryview(scratch)[: fields[7]])

    def _checked(self, link: Link, fields: Fields) -> Message:
        """Return the message of a header; `WireError` when no node of this version sends it."""
        message = unpack_coherence(fields)
        region = self.engine.regions.get(message.region)
        if region is None:
            return message
        wrong = region.check(message) or border.coherence(region, message, link.node)
        if wrong is not None:
            raise WireError(f"a coherence message of kind {message.kind} is wrong: {wrong}")
        return message

    def _frames_of(self, message: Message, length: int) -> Frames | None:
        """Return where the pages of a DATA message belong; None when their region was destroyed."""
        frames = self.frames.get(message.region)
        if frames is not None and length != message.count * frames.page_size:
            pages = message.count
            raise WireError(f"{pages} pages have {pages * frames.page_size} bytes, not {length}")
        return frames

    def received(self, link: Link, fields: Fields) -> None:
        """The payload is complete: install what is still wanted of it."""
        payload = self._payloads.pop(link)
        message = payload.message
        frames = self.frames.get(message.region)
        if frames is None:
            return
        if message.kind == _DIFF:
            assert payload.scratch is not None  # nothing voids a diff
            self.release.arrived(message, memoryview(payload.scratch)[: fields[7]], frames)
            self._spare = payload.scratch
            return
        if payload.scratch is not None:
            size = frames.page_size
            scratch = memoryview(payload.scratch)
            for page, count in self.engine.wanted_runs(message):
                low = max((page - message.page) * size, payload.direct)
                high = (page - message.page + count) * size
                if frames.live:
                    frames.store(page, scratch[low:high])
                elif low < high:
                    frames.view(message.page, message.count)[low:high] = scratch[low:high]
        self._installed(message, frames)

    def _installed(self, message: Message, frames: Frames) -> None:
        self.pages_in += message.count
        self.bytes_in += message.count * frames.page_size
        self.engine.received(message, time.monotonic_ns())
        self.perform()

    def link_lost(self, link: Link) -> None:
        """Forget what was on its way over that link."""
        self._payloads.pop(link, None)

    def tick(self, now: int) -> int | None:
        """Let held-back demands go on; return when to tick next."""
        engine = self.engine
        deadline = engine.deadline
        if deadline is not None and deadline <= now:
            self.poll_applied()
            engine.tick(now)
            self.perform()
            deadline = engine.deadline
        if self._reclaim or self._dying:
            self._give_back()
            if any(frames.freeing for frames in self._dying):  # in the next round: others come in between
                soon = now + FREE_PAUSE_NS
                return soon if deadline is None else min(deadline, soon)
        return deadline

    def poll_applied(self) -> None:
        """Tell the engine which woken threads have mapped their page by now."""
        unapplied = self.engine.unapplied
        if unapplied:
            now = time.monotonic_ns()
            for waiter in list(unapplied):
                if not self.pager.is_unapplied(waiter):
                    self.engine.applied(waiter, now)

    def wrap_effect(self, kind: type, wrap: Callable[[Callable[[Any], None]], Callable[[Any], None]]) -> None:
        """Perform effects of that kind by ``wrap(how they are performed now)``; for tracing."""
        self.effects[kind] = wrap(self.effects[kind])

    # -- effects -----------------------------------------------------------------------------------------

    def perform(self) -> None:
        """Carry out what the engine asks for, until it asks for nothing.

        An effect may be over at once and call the engine back: what that adds comes after the rest.
        """
        if self._performing:
            return
        engine = self.engine
        perform = self.effects
        self._performing = True
        try:
            while engine.effects:
                for effect in engine.take():
                    perform[type(effect)](effect)
        finally:
            self._performing = False
        if self._payloads:
            # Whatever the engine was told may have voided what is arriving.
            self._divert()

    def _send(self, effect: Send) -> None:
        link = self.links.get(effect.node)
        if link is not None:
            message = effect.message
            send = link.send_later if message.kind == _CONFIRM else link.send
            send(pack_coherence(message, self.epoch))

    def _send_pages(self, effect: SendPages) -> None:
        message = effect.message
        frames = self.frames[message.region]
        link = self.links.get(effect.node)
        if link is None:
            return
        read = frames.copy if effect.live else frames.view
        payload = read(message.page, message.count)
        link.send(pack_coherence(message, self.epoch, len(payload)), payload)
        link.flush()
        self.pages_out += message.count
        self.bytes_out += len(payload)

    def _lower(self, effect: Lower) -> None:
        self.pager.lower(effect.region, effect.page, effect.count, effect.level, effect.token)

    def _fill(self, effect: Fill) -> None:
        self.frames[effect.region].fill(effect.page, effect.count)

    def _raise(self, effect: Raise) -> None:
        self.pager.raise_(effect.region, effect.page, effect.count, effect.level, effect.mark)

    def _lease(self, effect: Lease) -> None:
        self.pager.lease(effect.region, effect.page, effect.count, effect.end)

    def _wake(self, effect: Wake) -> None:
        waiter = effect.waiter
        if self._pinning:
            pin = self._pinning.pop(waiter, None)
            if pin is not None and effect.status == Status.OK:
                self.on_pinned(waiter >> SLOT_BITS, pin)
        self.pager.wake(waiter, effect.status, effect.peer + 1)

    def _discard(self, effect: Discard) -> None:
        if self.frames[effect.region].discard(effect.count):
            self._reclaim.add(effect.region)

    def _lowered(self, token: int) -> None:
        if token < 0:
            self._drops.pop(token)()
            return
        self.engine.lowered(token, time.monotonic_ns())
        self.perform()

    # -- payloads and memory -----------------------------------------------------------------------------

    def _divert(self) -> None:
        """Send the rest of payloads that were voided while they arrive to scratch memory."""
        for link, payload in self._payloads.items():
            if payload.target is not None and not self.engine.accepts(payload.message):
                payload.target = None
                total = link.reader.missing
                length = payload.message.count * self.frames[payload.message.region].page_size
                payload.direct = length - total
                payload.scratch = bytearray(length)
                link.reader.sink(memoryview(payload.scratch))

    def _give_back(self) -> None:
        """Return memory, when no socket refers to frames any more."""
        if any(link.sending for link in self.links.values()):
            return
        for number in self._reclaim:
            if number in self.frames:
                self.frames[number].reclaim(self.engine.regions[number].table.unreachable())
        self._reclaim.clear()
        self._dying = [frames for frames in self._dying if not frames.close()]
