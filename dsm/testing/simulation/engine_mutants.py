"""Deliberate bugs of the engine while everybody lives, put into its roles.

Owns the classes; `mutants` names them and says what is wrong.
"""

from __future__ import annotations

from dsm.coherence.directory import Directory, Transaction
from dsm.coherence.hold import Hold
from dsm.coherence.holder import Demand, Holder
from dsm.coherence.messages import Discard, Flag, Kind, Message
from dsm.coherence.requester import Requester
from dsm.coherence.sequential import SequentialRegion
from dsm.coherence.states import State

# -- directory ------------------------------------------------------------------------------------------


class ClosesEarly(Directory):
    """Ends a transaction when the answer is on its way, not when it is installed."""

    def _start(self, message: Message, page: int, count: int) -> None:
        super()._start(message, page, count)
        transaction = self.busy.get(page)
        if isinstance(transaction, Transaction) and not transaction.awaiting:
            self._close(transaction)

    def invalidated(self, message: Message) -> None:
        transaction = self._find(message.page, message.count, "INVALIDATED")
        super().invalidated(message)
        if not transaction.awaiting:
            self._close(transaction)

    def sent(self, page: int, count: int) -> None:
        pass

    def confirm(self, message: Message) -> None:
        pass


class NoQueue(Directory):
    """Starts a second transaction on a page while one is open."""

    def get(self, message: Message, page: int, count: int) -> None:
        for run, pages in self.region.table.directory_runs(page, count):
            self._start(message, run, pages)

    def confirm(self, message: Message) -> None:
        if all(page in self.busy for page in range(message.page, message.page + message.count)):
            super().confirm(message)


class StaleUpgrade(Directory):
    """Believes a requester that says it has a copy, though it is not in the copyset any more."""

    def _start(self, message: Message, page: int, count: int) -> None:
        if message.flags & Flag.HAVE:
            for one in range(page, page + count):
                self.region.table.copyset[one] |= 1 << message.node
        super()._start(message, page, count)


class ForgetsClaim(Directory):
    """Gives the first touch away twice: the claim is not kept."""

    def _start(self, message: Message, page: int, count: int) -> None:
        fresh = self.region.table.owner[page] == 0
        super()._start(message, page, count)
        if fresh:
            for one in range(page, page + count):
                self.region.table.owner[one] = 0
                self.region.table.copyset[one] = 0


class ForgetsReader(Directory):
    """Does not note who got a copy."""

    def confirm(self, message: Message) -> None:
        asked = self._find(message.page, message.count, "CONFIRM").message
        table = self.region.table
        before = table.copyset[message.page]
        super().confirm(message)
        if not asked.flags & Flag.WRITE and before:
            for one in range(message.page, message.page + message.count):
                table.copyset[one] = before


class ForgetsAhead(Directory):
    """Does not note who reads ahead."""

    def ahead(self, message: Message) -> None:
        table = self.region.table
        pages = range(message.page, message.page + message.count)
        before = [table.copyset[page] for page in pages]
        super().ahead(message)
        for page, copyset in zip(pages, before, strict=True):
            if copyset:
                table.copyset[page] = copyset


class AheadOfBusy(Directory):
    """Serves a speculative read of a page that is in a transaction."""

    def ahead(self, message: Message) -> None:
        busy, self.busy = self.busy, {}
        super().ahead(message)
        self.busy = busy


class ForgetsOwner(Directory):
    """Does not note the new owner after a write."""

    def confirm(self, message: Message) -> None:
        table = self.region.table
        before = table.owner[message.page]
        super().confirm(message)
        if before:
            for one in range(message.page, message.page + message.count):
                table.owner[one] = before


# -- holder ---------------------------------------------------------------------------------------------


class AnswersEarly(Holder):
    """Answers a demand before its workers have lost access."""

    kinds: tuple[int, ...] = ()

    def _start(self, demand: Demand) -> None:
        super()._start(demand)
        if demand.started and demand.message.kind in self.kinds:
            super()._answer(demand)

    def _answer(self, demand: Demand) -> None:
        if not (demand.started and demand.message.kind in self.kinds):
            super()._answer(demand)


class SendsEarly(AnswersEarly):
    kinds = (Kind.FETCH,)


class InvalidatedEarly(AnswersEarly):
    kinds = (Kind.INVALIDATE,)


class PunchesEarly(Holder):
    """Discards frames before every worker acknowledged that it cannot reach them."""

    def _start(self, demand: Demand) -> None:
        super()._start(demand)
        if demand.started and demand.message.kind == Kind.INVALIDATE:
            self.region.effects.append(Discard(self.region.number, demand.page, demand.count))


class OutOfOrder(Holder):
    """Starts a demand while an earlier one for the same page is open."""

    def revoke(self, message: Message) -> None:
        demands, self.demands = self.demands, []
        super().revoke(message)
        self.demands = demands + self.demands


# -- requester ------------------------------------------------------------------------------------------


class InstallsVoided(Requester):
    """Installs pages whose invalidation overtook their data."""

    def live_runs(self, message: Message) -> list[tuple[int, int]]:
        return [(message.page, message.count)] if message.request in self.requests else []

    def install(self, message: Message) -> None:
        request = self.requests.get(message.request)
        if request is not None:
            for page in range(message.page, message.page + message.count):
                if not request.awaits(page):
                    self.region.table.state[page] = State.AHEAD
        super().install(message)


class ForgetsWaiter(Requester):
    """Wakes only one of the threads that wait for a page."""

    def _settle_page(self, page: int) -> None:
        self.waiting[page] = self.waiting[page][:1]
        super()._settle_page(page)


class IgnoresPins(SequentialRegion):
    """Gives pinned pages away."""

    __slots__ = ()

    def is_pinned(self, page: int, count: int, takes_all: bool) -> bool:
        return False


class NoHold(Hold):
    """Gives pages away at once."""

    __slots__ = ()

    def until(self, page: int, count: int, now: int) -> int:
        return 0
