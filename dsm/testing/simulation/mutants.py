"""Deliberate bugs, each of which the checkers must find.

Owns the list: a name, what is wrong, and the classes of a simulation with the bug put in.  A checker
that finds none of a bug's consequences within a bounded number of seeds is itself broken; a test runs
them all.  Bugs of the engine are put into its roles, bugs of the manager and of the shim into their
models (`driver_mutants`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsm.coherence.directory import Directory, Transaction
from dsm.coherence.engine import Engine
from dsm.coherence.hold import Hold
from dsm.coherence.holder import Demand, Holder
from dsm.coherence.messages import Discard, Flag, Kind, Message
from dsm.coherence.requester import Requester
from dsm.coherence.sequential import SequentialRegion
from dsm.coherence.states import PENDING, State
from dsm.coherence.table import LOST
from dsm.testing.simulation import driver_mutants as driver
from dsm.testing.simulation.cluster import Parts
from dsm.testing.simulation.faults import Faults
from dsm.types import Region


@dataclass(frozen=True)
class Mutant:
    """One deliberate bug."""

    #: What is done wrong.
    about: str
    parts: Parts


MUTANTS: dict[str, Mutant] = {}


def _add(name: str, about: str, parts: Parts) -> None:
    MUTANTS[name] = Mutant(about, parts)


def mutated_engine(
    *,
    directory: type[Directory] = Directory,
    holder: type[Holder] = Holder,
    requester: type[Requester] = Requester,
    hold: type[Hold] = Hold,
    region_class: type[SequentialRegion] = SequentialRegion,
    faults: type[Faults] = Faults,
) -> Parts:
    """Return parts whose engines have these roles."""

    class Mutated(Engine):
        def __init__(self, node: int, patience: int = 0) -> None:
            super().__init__(node, patience)
            self.hold = hold()

        def add_region(self, region: Region) -> None:
            super().add_region(region)
            made = self.regions[region.region]
            made.__class__ = region_class
            before = made.requester, made.directory, made.holder
            made.requester, made.directory, made.holder = requester(made), directory(made), holder(made)
            roles = dict(zip(map(id, before), (made.requester, made.directory, made.holder), strict=True))
            # The table of messages names methods of the roles: it must lead to the new ones.
            made._roles = {
                kind: getattr(roles[id(method.__self__)], method.__name__)  # type: ignore[attr-defined]
                for kind, method in made._roles.items()
            }

    return Parts(engine=Mutated, faults=faults)


# -- directory ------------------------------------------------------------------------------------------


class _ClosesEarly(Directory):
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


class _NoQueue(Directory):
    """Starts a second transaction on a page while one is open."""

    def get(self, message: Message, page: int, count: int) -> None:
        for run, pages in self.region.table.directory_runs(page, count):
            self._start(message, run, pages)

    def confirm(self, message: Message) -> None:
        if all(page in self.busy for page in range(message.page, message.page + message.count)):
            super().confirm(message)


class _StaleUpgrade(Directory):
    """Believes a requester that says it has a copy, though it is not in the copyset any more."""

    def _start(self, message: Message, page: int, count: int) -> None:
        if message.flags & Flag.HAVE:
            for one in range(page, page + count):
                self.region.table.copyset[one] |= 1 << message.node
        super()._start(message, page, count)


class _ForgetsClaim(Directory):
    """Gives the first touch away twice: the claim is not kept."""

    def _start(self, message: Message, page: int, count: int) -> None:
        fresh = self.region.table.owner[page] == 0
        super()._start(message, page, count)
        if fresh:
            for one in range(page, page + count):
                self.region.table.owner[one] = 0
                self.region.table.copyset[one] = 0


class _ForgetsReader(Directory):
    """Does not note who got a copy."""

    def confirm(self, message: Message) -> None:
        asked = self._find(message.page, message.count, "CONFIRM").message
        table = self.region.table
        before = table.copyset[message.page]
        super().confirm(message)
        if not asked.flags & Flag.WRITE and before:
            for one in range(message.page, message.page + message.count):
                table.copyset[one] = before


class _ForgetsAhead(Directory):
    """Does not note who reads ahead."""

    def ahead(self, message: Message) -> None:
        table = self.region.table
        pages = range(message.page, message.page + message.count)
        before = [table.copyset[page] for page in pages]
        super().ahead(message)
        for page, copyset in zip(pages, before, strict=True):
            if copyset:
                table.copyset[page] = copyset


class _AheadOfBusy(Directory):
    """Serves a speculative read of a page that is in a transaction."""

    def ahead(self, message: Message) -> None:
        busy, self.busy = self.busy, {}
        super().ahead(message)
        self.busy = busy


class _ForgetsOwner(Directory):
    """Does not note the new owner after a write."""

    def confirm(self, message: Message) -> None:
        table = self.region.table
        before = table.owner[message.page]
        super().confirm(message)
        if before:
            for one in range(message.page, message.page + message.count):
                table.owner[one] = before


_add(
    "transaction-closed-early",
    "the directory takes the next request before the requester has installed",
    mutated_engine(directory=_ClosesEarly),
)
_add(
    "second-transaction",
    "a second transaction is opened on a page while one is open",
    mutated_engine(directory=_NoQueue),
)
_add(
    "stale-upgrade",
    "a write grant without data to a node that lost its copy",
    mutated_engine(directory=_StaleUpgrade),
)
_add(
    "claimed-twice",
    "two nodes are told that a page was never touched",
    mutated_engine(directory=_ForgetsClaim),
)
_add("forgotten-reader", "a reader is not put into the copyset", mutated_engine(directory=_ForgetsReader))
_add(
    "forgotten-read-ahead",
    "a reader ahead is not put into the copyset",
    mutated_engine(directory=_ForgetsAhead),
)
_add(
    "read-ahead-of-busy",
    "a speculative read is served in the middle of a transaction",
    mutated_engine(directory=_AheadOfBusy),
)
_add(
    "forgotten-owner",
    "after a write the directory still names the old owner",
    mutated_engine(directory=_ForgetsOwner),
)

# -- holder ---------------------------------------------------------------------------------------------


class _AnswersEarly(Holder):
    """Answers a demand before its workers have lost access."""

    kinds: tuple[int, ...] = ()

    def _start(self, demand: Demand) -> None:
        super()._start(demand)
        if demand.started and demand.message.kind in self.kinds:
            super()._answer(demand)

    def _answer(self, demand: Demand) -> None:
        if not (demand.started and demand.message.kind in self.kinds):
            super()._answer(demand)


class _SendsEarly(_AnswersEarly):
    kinds = (Kind.FETCH,)


class _InvalidatedEarly(_AnswersEarly):
    kinds = (Kind.INVALIDATE,)


class _PunchesEarly(Holder):
    """Discards frames before every worker acknowledged that it cannot reach them."""

    def _start(self, demand: Demand) -> None:
        super()._start(demand)
        if demand.started and demand.message.kind == Kind.INVALIDATE:
            self.region.effects.append(Discard(self.region.number, demand.page, demand.count))


class _OutOfOrder(Holder):
    """Starts a demand while an earlier one for the same page is open."""

    def revoke(self, message: Message) -> None:
        demands, self.demands = self.demands, []
        super().revoke(message)
        self.demands = demands + self.demands


_add(
    "sent-before-protected",
    "a frame is read before every worker lost write access",
    mutated_engine(holder=_SendsEarly),
)
_add(
    "invalidated-too-early",
    "an invalidation is acknowledged before the workers acknowledged theirs",
    mutated_engine(holder=_InvalidatedEarly),
)
_add(
    "punched-too-early",
    "frames are discarded before PROT_NONE is acknowledged",
    mutated_engine(holder=_PunchesEarly),
)
_add(
    "demands-out-of-order",
    "a demand overtakes an earlier one for the same page",
    mutated_engine(holder=_OutOfOrder),
)

# -- requester ------------------------------------------------------------------------------------------


class _InstallsVoided(Requester):
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


class _ForgetsWaiter(Requester):
    """Wakes only one of the threads that wait for a page."""

    def _settle_page(self, page: int) -> None:
        self.waiting[page] = self.waiting[page][:1]
        super()._settle_page(page)


class _IgnoresPins(SequentialRegion):
    """Gives pinned pages away."""

    __slots__ = ()

    def is_pinned(self, page: int, count: int, takes_all: bool) -> bool:
        return False


class _NoHold(Hold):
    """Gives pages away at once."""

    __slots__ = ()

    def until(self, page: int, count: int, now: int) -> int:
        return 0


_add(
    "voided-installed",
    "a fetch that was voided by an invalidation is installed",
    mutated_engine(requester=_InstallsVoided),
)
_add(
    "waiter-forgotten",
    "of several threads that wait for a page only one is woken",
    mutated_engine(requester=_ForgetsWaiter),
)
_add("pins-ignored", "a pinned page is given away", mutated_engine(region_class=_IgnoresPins))
_add(
    "no-hold",
    "pages are given away at once: instructions that need two never finish",
    mutated_engine(hold=_NoHold),
)

# -- when a node dies -----------------------------------------------------------------------------------


class _KeepsDeadRequester(Directory):
    """Waits for ever for the confirmation of a dead requester."""

    def _abandon(self, transaction: Transaction) -> None:
        pass


class _AwaitsTheDead(Directory):
    """Waits for the acknowledgement of a dead holder."""

    def node_lost(self, node: int) -> None:
        for each in self.busy.values():
            if isinstance(each, Transaction) and each.awaiting >> node & 1:
                each.awaiting |= 1 << 63
        super().node_lost(node)


class _TakesLossForFresh(Directory):
    """A page that went away with its owner was never touched."""

    def _search(self, page: int, count: int, dead: int) -> None:
        table = self.region.table
        if table.copyset[page]:
            super()._search(page, count, dead)
        else:
            for one in range(page, page + count):
                table.owner[one] = 0


class _ElectsUnasked(Directory):
    """Takes the first of the copyset for the new owner, though it may be waiting for the dead one's data."""

    def _search(self, page: int, count: int, dead: int) -> None:
        table = self.region.table
        copyset = table.copyset[page]
        if not copyset:
            super()._search(page, count, dead)
            return
        for one in range(page, page + count):
            table.owner[one] = (copyset & -copyset).bit_length()


class _RemembersTheDead(Directory):
    """Leaves a dead node in the copysets."""

    def node_lost(self, node: int) -> None:
        before = [copyset >> node & 1 for copyset in self.region.table.copyset]
        super().node_lost(node)
        for page, had in enumerate(before):
            if had and 0 < self.region.table.owner[page] < LOST:
                self.region.table.copyset[page] |= 1 << node


class _GivesUpAtOnce(Directory):
    """A page whose owner is dead is lost, whoever else has a copy."""

    def _search(self, page: int, count: int, dead: int) -> None:
        self.region.table.lose(page, count, dead)


class _IgnoresVoid(Requester):
    """Goes on waiting for what a dead node was to send."""

    def void_request(self, message: Message) -> None:
        pass


class _DeniesInstalled(Requester):
    """Answers that it does not have what it has installed."""

    def void_request(self, message: Message) -> None:
        if message.request in self.requests:
            super().void_request(message)
            return
        region = self.region
        absent = Message(
            Kind.ABSENT, region.number, message.page, message.count, message.request, region.node
        )
        region.send(region.placement.directory(message.page), absent)


class _KeepsReadingAhead(Holder):
    """Says that it does not have a page that was read ahead, and goes on waiting for it."""

    def _forget_ahead(self, page: int, end: int) -> None:
        pass


class _AnswersPresent(Holder):
    """Says that it has a page which it was about to read ahead."""

    def locate(self, message: Message) -> None:
        present = Message(
            Kind.PRESENT, message.region, message.page, message.count, message.request, self.region.node
        )
        self.region.send(self.region.placement.directory(message.page), present)


class _ForgetsRequest(Requester):
    """A wait that ends at its deadline takes its request along."""

    def expire(self, age: int) -> None:
        late = [page for page, waits in self.waiting.items() if any(wait.age <= age for wait in waits)]
        super().expire(age)
        for number, request in list(self.requests.items()):
            if request.page in late and not request.speculative:
                del self.requests[number]
                for page in range(request.page, request.page + request.count):
                    if self.region.table.state[page] in PENDING:
                        self.region.table.shift("give-up", page, 1)


class _NoDeadline(Requester):
    """Waits never end."""

    def expire(self, age: int) -> None:
        pass


_add(
    "dead-requester-kept",
    "a transaction whose requester died is not closed",
    mutated_engine(directory=_KeepsDeadRequester, faults=driver.Crashes),
)
_add(
    "dead-holder-awaited",
    "the acknowledgement of a dead holder is awaited for ever",
    mutated_engine(directory=_AwaitsTheDead, faults=driver.Crashes),
)
_add(
    "dead-holder-remembered",
    "a dead node stays in the copysets",
    mutated_engine(directory=_RemembersTheDead, faults=driver.Crashes),
)
_add(
    "lost-taken-for-fresh",
    "a page that went away with its owner is given out as never touched",
    mutated_engine(directory=_TakesLossForFresh, faults=driver.Crashes),
)
_add(
    "elected-unasked",
    "the new owner of a page is not asked whether it has it",
    mutated_engine(directory=_ElectsUnasked, faults=driver.Crashes),
)
_add(
    "copy-overlooked",
    "a page is given up though a survivor has a copy",
    mutated_engine(directory=_GivesUpAtOnce, faults=driver.Crashes),
)
_add(
    "void-ignored",
    "a requester goes on waiting for what a dead node was to send",
    mutated_engine(requester=_IgnoresVoid, faults=driver.Crashes),
)
_add(
    "installed-denied",
    "a requester says that it does not have what it has installed",
    replace(mutated_engine(requester=_DeniesInstalled, faults=driver.Cuts), timing=driver.SlowPages),
)
_add(
    "read-ahead-of-the-dead",
    "what a dead node was to send ahead is waited for",
    mutated_engine(holder=_KeepsReadingAhead, faults=driver.Crashes),
)
_add(
    "present-unchecked",
    "a node says that it has a page which has not arrived",
    mutated_engine(holder=_AnswersPresent, faults=driver.Crashes),
)
_add(
    "timeout-forgets-request",
    "a wait that ends at its deadline takes its request along",
    mutated_engine(requester=_ForgetsRequest, faults=driver.Stops),
)
_add(
    "no-deadline",
    "a wait does not end at its deadline",
    mutated_engine(requester=_NoDeadline, faults=driver.Stops),
)
_add(
    "acts-on-suspicion",
    "a node takes another one for dead before the coordinator says so",
    Parts(node=driver.ActsOnSuspicion, faults=driver.Cuts),
)
_add(
    "dead-still-heard",
    "a node that was declared dead is still listened to",
    Parts(node=driver.HearsTheDead, faults=driver.Cuts),
)

# -- manager, shim, network -----------------------------------------------------------------------------

_add(
    "skipped-invalidation",
    "an invalidation is not sent but taken for done",
    Parts(node=driver.SkipsInvalidation),
)
_add("granted-before-complete", "a frame is granted when its header is here", Parts(node=driver.GrantsEarly))
_add(
    "acknowledgement-lost",
    "an acknowledgement of a worker is lost",
    Parts(worker=driver.LosesAcknowledgement),
)
_add("invalidated-lost", "an INVALIDATED is lost", Parts(node=driver.LosesInvalidated))
_add("wake-lost", "a wake-up is lost", Parts(node=driver.LosesWake))
_add(
    "lower-not-awaited",
    "the manager does not wait for its workers' acknowledgements",
    Parts(node=driver.DoesNotWait),
)
_add("lower-not-far-enough", "a former owner keeps read access", Parts(node=driver.KeepsReading))
_add(
    "applied-read-first",
    "applied tables are read before the wanted table is written",
    Parts(node=driver.ReadsFirst),
)
_add("page-lock-overlooked", "a worker about to decide is not asked", Parts(node=driver.OverlooksLocks))
_add(
    "punched-while-sending",
    "a frame is discarded before its last byte left",
    Parts(node=driver.PunchesWhileSending),
)
_add(
    "late-bytes-of-local-void",
    "bytes still go into a frame whose invalidation came from this node's own directory",
    Parts(
        node=driver.DivertsOnMessageOnly, timing=driver.SlowPages, style=driver.Windows, shape=driver.OneBlock
    ),
)
_add(
    "late-bytes-stored",
    "the bytes of a voided fetch go into the frame",
    Parts(node=driver.StoresLateBytes, timing=driver.SlowPages, style=driver.Windows, shape=driver.OneBlock),
)
_add(
    "grant-after-revocation",
    "what is wanted is read before the page lock is taken",
    Parts(thread=driver.ReadsBeforeLock),
)
_add(
    "handler-without-lock",
    "the fault handler does not wait for the page lock",
    Parts(thread=driver.HandlerWithoutLock),
)
_add(
    "neighbours-without-lock",
    "neighbours are mapped without their locks",
    Parts(thread=driver.NeighboursWithoutLock),
)
_add(
    "service-without-lock",
    "the service thread does not wait for page locks",
    Parts(worker=driver.ServiceWithoutLock),
)
_add(
    "service-early",
    "the service thread acknowledges before it has obeyed",
    Parts(worker=driver.AcknowledgesEarly),
)
_add("link-reorders", "messages of one link overtake each other", Parts(network=driver.ReorderingNetwork))
