"""What the effects of release consistency do to a node's memory and links.

Owns twins and diffs.  What is not atomic in reality takes time here, and everybody else goes on meanwhile: a
frame is copied for a diff half by half, and the bytes of a diff are stored half by half.
"""

from __future__ import annotations

from typing import Any

from dsm.coherence.messages import (
    Apply,
    Diff,
    Discard,
    Fill,
    Forward,
    Kind,
    LowerRuns,
    Message,
    Twin,
)
from dsm.testing.simulation.frames import NodeRegion
from dsm.testing.simulation.network import Transfer
from dsm.testing.simulation.release.diffs import DiffTransfer, header, of_runs, pages_of, runs_of, touched
from dsm.testing.simulation.release.frames import Byte, LiveRegion
from dsm.testing.simulation.release.losses import ReleaseLosses
from dsm.testing.simulation.release.truth import ReleaseTruth
from dsm.testing.simulation.sync import SyncNode
from dsm.testing.simulation.trace import What, message_text
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.worker import LEVEL
from dsm.testing.simulation.world import Violation
from dsm.types import Region


class ReleasePerformer(SyncNode):
    """A node whose frames have twins."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._actions[Twin] = self.do_twin
        self._actions[Forward] = self.do_forward
        self.halves[LowerRuns] = self.begin_lower_runs, self.finish_lower_runs
        self.halves[Diff] = self.begin_diff, self.finish_diff
        self.halves[Apply] = self.begin_apply, self.finish_apply
        #: Copies of frames for the diff under way, by page.
        self._copies: dict[int, list[int]] = {}

    def make_region(self, region: Region, truth: Truth, fill: int) -> NodeRegion:
        """Return the frames of a region."""
        if isinstance(truth, ReleaseTruth):
            return LiveRegion(region.region, truth, fill)
        return super().make_region(region, truth, fill)

    def frames_of(self, number: int, effect: object) -> LiveRegion:
        """Return a region of release consistency, which must not have been dropped."""
        home = self.live(number, effect)
        assert isinstance(home, LiveRegion)
        return home

    # -- access -----------------------------------------------------------------------------------

    def begin_lower_runs(self, effect: LowerRuns) -> None:
        """First half: what is wanted."""
        home = self.live(effect.region, effect)
        level = int(effect.level)
        for page in pages_of(effect.runs):
            home.wanted[page] = min(home.wanted[page] & LEVEL, level)
            home.truth.lowered(self.number, page, level)

    def finish_lower_runs(self, effect: LowerRuns) -> None:
        """Second half: ask every worker that has more, or is about to decide."""
        asked: set[tuple[int, int]] = set()
        for page, count in effect.runs.tolist():
            asked |= self.ask_workers(effect, page, count)
        self.await_workers(effect.token, asked)

    # -- twins and diffs --------------------------------------------------------------------------

    def do_twin(self, effect: Twin) -> None:
        """Copy frames before any worker may write them."""
        home = self.frames_of(effect.region, effect)
        for page in range(effect.page, effect.page + effect.count):
            self._at_rest(home, page, "makes the twin of")
            if page in home.twins:
                raise Violation(f"node {self.number}: r{effect.region} p{page} gets a second twin")
            home.twins[page] = list(home.frames[page])

    def begin_diff(self, effect: Diff) -> None:
        """First half: copy the first half of each frame."""
        home = self.frames_of(effect.region, effect)
        for page in pages_of(effect.runs):
            if page not in home.twins:
                raise Violation(f"node {self.number}: {effect}, but page {page} has no twin")
            if not effect.keep:
                self._at_rest(home, page, "compares")
            self._copies[page] = home.frames[page][: home.words // 2]

    def finish_diff(self, effect: Diff) -> None:
        """Second half: copy the rest, compare the copies with the twins, send what differs."""
        home = self.frames_of(effect.region, effect)
        changes: list[Byte] = []
        for page in pages_of(effect.runs):
            if not effect.keep:
                self._at_rest(home, page, "compares")
            copy = self._copies.pop(page) + home.frames[page][home.words // 2 :]
            twin = home.twins.pop(page)
            changes += self.changed_bytes(home, page, copy, twin)
            if effect.keep:
                home.twins[page] = self.new_twin(home, page, copy)
        parts = self._send_changes(effect, home, changes)
        self.engine.diffed(effect.region, effect.request, runs_of(touched(changes)), parts, self.world.now)
        self.collect()

    def changed_bytes(self, home: LiveRegion, page: int, copy: list[int], twin: list[int]) -> list[Byte]:
        """Return what of the copy of a frame differs from its twin."""
        return [(page, offset, byte) for offset, byte in enumerate(copy) if byte != twin[offset]]

    def new_twin(self, home: LiveRegion, page: int, copy: list[int]) -> list[int]:
        """Return the twin of a page that stays writable: the copy that was compared."""
        return copy

    def _send_changes(self, effect: Diff, home: LiveRegion, changes: list[Byte]) -> int:
        """Send changes in one message or several, which may share a page; return how many pages they name."""
        random = self.world.random
        named = 0
        if effect.node == self.number:
            return 0  # what this home changed itself, it only wants to know
        while changes:
            part = len(changes) if random.random() < 0.7 else random.randint(1, len(changes))
            sent, changes = changes[:part], changes[part:]
            self.send_diff(effect.node, header(effect.region, effect.request, self.number, sent), home, sent)
            named += len(touched(sent))
        return named

    def send_diff(self, node: int, message: Message, home: LiveRegion, changes: list[Byte]) -> None:
        """Send a message with changed bytes."""
        if node == self.number:
            raise Violation(f"node {self.number} sends a diff to itself: {message_text(message)}")
        if node not in self.closed and self.network.reaches(node):
            link = self.network.link(self.number, node)
            link.send_transfer(DiffTransfer(link.sender, link.receiver, message, home, changes))

    def do_forward(self, effect: Forward) -> None:
        """Send a part of a diff on."""
        home = self.frames_of(effect.message.region, effect)
        if isinstance(self.losses, ReleaseLosses):
            self.losses.passes_on(self.number, effect)
        changes = of_runs(self._payload(effect.payload), effect.runs)
        self.send_diff(effect.node, effect.message, home, changes)

    def begin_apply(self, effect: Apply) -> None:
        """First half: store the first half of the bytes."""
        changes = of_runs(self._payload(effect.payload), effect.runs)
        self.store_bytes(effect, changes[: len(changes) // 2])

    def finish_apply(self, effect: Apply) -> None:
        """Second half: store the other ones."""
        changes = of_runs(self._payload(effect.payload), effect.runs)
        self.store_bytes(effect, changes[len(changes) // 2 :])

    def store_bytes(self, effect: Apply, changes: list[Byte]) -> None:
        """Store changed bytes, and no other byte."""
        home = self.frames_of(effect.region, effect)
        for page, offset, byte in changes:
            # At home a twin only serves to find out whether the home itself changed anything.
            if page in home.twins and not self.engine.release[effect.region].placement.is_mine(page):
                raise Violation(f"node {self.number}: {effect} into p{page}, which has a twin")
            if home.frames[page][offset] < 0:
                raise Violation(f"node {self.number}: {effect} into p{page}, which was never filled")
            home.frames[page][offset] = byte

    def _payload(self, payload: object) -> list[Byte]:
        assert isinstance(payload, list)
        return payload

    def _at_rest(self, home: LiveRegion, page: int, why: str) -> None:
        truth = home.truth
        assert isinstance(truth, ReleaseTruth)
        truth.at_rest(self.number, page, why)

    # -- what must not meet a twin ----------------------------------------------------------------

    def do_fill(self, effect: Fill) -> None:
        """Fill frames with the region's pattern."""
        self._without_twins(effect.region, effect.page, effect.count, effect)
        home = self.regions[effect.region]
        for page in range(effect.page, effect.page + effect.count):
            # Who looks on while a copy that nobody has ever written is filled again sees nothing.
            if not (isinstance(home, LiveRegion) and home.frames[page] == [home.fill] * home.words):
                super().do_fill(Fill(effect.region, page, 1))

    def do_discard(self, effect: Discard) -> None:
        """Return the memory of frames."""
        self._without_twins(effect.region, effect.page, effect.count, effect)
        super().do_discard(effect)

    def store(self, transfer: Transfer, words: int) -> None:
        """Put a part of each page that is still wanted into its frame."""
        message = transfer.message
        for first, count in self.engine.wanted_runs(message):
            self._without_twins(message.region, first, count, message)
        super().store(transfer, words)

    def _without_twins(self, number: int, page: int, count: int, why: object) -> None:
        home = self.regions[number]
        if isinstance(home, LiveRegion) and any(p in home.twins for p in range(page, page + count)):
            raise Violation(f"node {self.number}: {why} into a frame that has a twin (r{number})")

    # -- diffs that arrive ------------------------------------------------------------------------

    def header(self, transfer: Transfer) -> None:
        """The header of a message with pages, or with bytes of them, arrives."""
        if transfer.message.kind != Kind.DIFF:
            super().header(transfer)

    def end(self, transfer: Transfer) -> None:
        """The whole of a message with pages, or with bytes of them, is here."""
        if not isinstance(transfer, DiffTransfer):
            super().end(transfer)
            return
        sender = transfer.sender.number
        if sender in self.closed:
            return
        message = transfer.message
        self.world.note(What.DIFF, self.number, sender, message.page, message.count, message)
        if not self.regions[message.region].dropped:
            runs = runs_of(touched(transfer.changes))
            self.engine.diff_arrived(message, runs, transfer.changes, self.world.now)
