"""Deliberate bugs, each of which the checkers must find.

Owns the list: a name, what is wrong, and the classes of a simulation with the bug put in.  A checker
that finds none of a bug's consequences within a bounded number of seeds is itself broken; a test runs
them all.  Bugs of the engine are put into its roles (`engine_mutants`, `recovery_mutants`), bugs of the
manager and of the shim into their models (`driver_mutants`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dsm.coherence.directory import Directory
from dsm.coherence.engine import Engine
from dsm.coherence.hold import Hold
from dsm.coherence.holder import Holder
from dsm.coherence.region import ModelRegion
from dsm.coherence.requester import Requester
from dsm.coherence.sequential import SequentialRegion
from dsm.testing.simulation import driver_mutants as driver
from dsm.testing.simulation import engine_mutants as engine
from dsm.testing.simulation import recovery_mutants as recovery
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


def give_roles(region: ModelRegion, **roles: type) -> None:
    """Let a new region have roles of these classes, by their names; its table of messages leads to them."""
    new: dict[int, object] = {}
    for name, role in roles.items():
        before = getattr(region, name)
        new[id(before)] = role(region)
        setattr(region, name, new[id(before)])
    region.roles = {
        kind: getattr(new.get(id(method.__self__), method.__self__), method.__name__)  # type: ignore[attr-defined]
        for kind, method in region.roles.items()
    }


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
            made = self.sequential[region.region]
            made.__class__ = region_class
            give_roles(made, requester=requester, directory=directory, holder=holder)

    return Parts(engine=Mutated, faults=faults)


# -- directory ------------------------------------------------------------------------------------------

_add(
    "transaction-closed-early",
    "the directory takes the next request before the requester has installed",
    mutated_engine(directory=engine.ClosesEarly),
)
_add(
    "second-transaction",
    "a second transaction is opened on a page while one is open",
    mutated_engine(directory=engine.NoQueue),
)
_add(
    "stale-upgrade",
    "a write grant without data to a node that lost its copy",
    mutated_engine(directory=engine.StaleUpgrade),
)
_add(
    "claimed-twice",
    "two nodes are told that a page was never touched",
    mutated_engine(directory=engine.ForgetsClaim),
)
_add(
    "forgotten-reader", "a reader is not put into the copyset", mutated_engine(directory=engine.ForgetsReader)
)
_add(
    "forgotten-read-ahead",
    "a reader ahead is not put into the copyset",
    mutated_engine(directory=engine.ForgetsAhead),
)
_add(
    "read-ahead-of-busy",
    "a speculative read is served in the middle of a transaction",
    mutated_engine(directory=engine.AheadOfBusy),
)
_add(
    "forgotten-owner",
    "after a write the directory still names the old owner",
    mutated_engine(directory=engine.ForgetsOwner),
)

# -- holder ---------------------------------------------------------------------------------------------

_add(
    "sent-before-protected",
    "a frame is read before every worker lost write access",
    mutated_engine(holder=engine.SendsEarly),
)
_add(
    "invalidated-too-early",
    "an invalidation is acknowledged before the workers acknowledged theirs",
    mutated_engine(holder=engine.InvalidatedEarly),
)
_add(
    "punched-too-early",
    "frames are discarded before PROT_NONE is acknowledged",
    mutated_engine(holder=engine.PunchesEarly),
)
_add(
    "demands-out-of-order",
    "a demand overtakes an earlier one for the same page",
    mutated_engine(holder=engine.OutOfOrder),
)

# -- requester ------------------------------------------------------------------------------------------

_add(
    "voided-installed",
    "a fetch that was voided by an invalidation is installed",
    mutated_engine(requester=engine.InstallsVoided),
)
_add(
    "waiter-forgotten",
    "of several threads that wait for a page only one is woken",
    mutated_engine(requester=engine.ForgetsWaiter),
)
_add("pins-ignored", "a pinned page is given away", mutated_engine(region_class=engine.IgnoresPins))
_add(
    "no-hold",
    "pages are given away at once: instructions that need two never finish",
    mutated_engine(hold=engine.NoHold),
)

# -- when a node dies -----------------------------------------------------------------------------------

_add(
    "dead-requester-kept",
    "a transaction whose requester died is not closed",
    mutated_engine(directory=recovery.KeepsDeadRequester, faults=driver.Crashes),
)
_add(
    "dead-holder-awaited",
    "the acknowledgement of a dead holder is awaited for ever",
    mutated_engine(directory=recovery.AwaitsTheDead, faults=driver.Crashes),
)
_add(
    "dead-holder-remembered",
    "a dead node stays in the copysets",
    mutated_engine(directory=recovery.RemembersTheDead, faults=driver.Crashes),
)
_add(
    "lost-taken-for-fresh",
    "a page that went away with its owner is given out as never touched",
    mutated_engine(directory=recovery.TakesLossForFresh, faults=driver.Crashes),
)
_add(
    "elected-unasked",
    "the new owner of a page is not asked whether it has it",
    mutated_engine(directory=recovery.ElectsUnasked, faults=driver.Crashes),
)
_add(
    "copy-overlooked",
    "a page is given up though a survivor has a copy",
    mutated_engine(directory=recovery.GivesUpAtOnce, faults=driver.Crashes),
)
_add(
    "void-ignored",
    "a requester goes on waiting for what a dead node was to send",
    mutated_engine(requester=recovery.IgnoresVoid, faults=driver.Crashes),
)
_add(
    "installed-denied",
    "a requester says that it does not have what it has installed",
    replace(mutated_engine(requester=recovery.DeniesInstalled, faults=driver.Cuts), timing=driver.SlowPages),
)
_add(
    "read-ahead-of-the-dead",
    "what a dead node was to send ahead is waited for",
    mutated_engine(holder=recovery.KeepsReadingAhead, faults=driver.Crashes),
)
_add(
    "present-unchecked",
    "a node says that it has a page which has not arrived",
    mutated_engine(holder=recovery.AnswersPresent, faults=driver.Crashes),
)
_add(
    "timeout-forgets-request",
    "a wait that ends at its deadline takes its request along",
    mutated_engine(requester=recovery.ForgetsRequest, faults=driver.Stops),
)
_add(
    "no-deadline",
    "a wait does not end at its deadline",
    mutated_engine(requester=recovery.NoDeadline, faults=driver.Stops),
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
