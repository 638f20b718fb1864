"""Deliberate bugs under bounded staleness, each of which the checkers must find.

Owns the classes and the list, as `dsm.testing.simulation.mutants` does for the sequential model.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from msgspec import structs

from dsm.coherence.bounded.directory import BoundedDirectory
from dsm.coherence.bounded.holder import BoundedHolder
from dsm.coherence.bounded.leases import LeaseTable
from dsm.coherence.bounded.region import BoundedRegion
from dsm.coherence.bounded.requester import BoundedRequester
from dsm.coherence.engine import Engine
from dsm.coherence.holder import Demand
from dsm.coherence.messages import Discard, Flag, Kind, Lease, Message, SendPages
from dsm.coherence.requester import Request
from dsm.coherence.states import State
from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation.bounded.cluster import BOUNDED_PARTS, BoundedShape, BoundedTiming
from dsm.testing.simulation.bounded.node import BoundedNode, LiveTransfer
from dsm.testing.simulation.bounded.worker import BoundedWorker
from dsm.testing.simulation.cluster import Parts, Shape
from dsm.testing.simulation.faults import Faults, Stormy
from dsm.testing.simulation.mutants import Mutant, give_roles
from dsm.testing.simulation.network import Transfer
from dsm.testing.simulation.program import Style
from dsm.testing.simulation.worker import WorkerRegion
from dsm.types import Region, RegionOptions

_WRITE = int(Flag.WRITE)


class Stops(Stormy):
    """Managers, workers and nodes stop, again and again."""

    choices = ((0, 0, 1),)

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.span = 500_000
        self.most = 8


class Slow(BoundedTiming):
    """Some messages take longer than a lease."""

    __slots__ = ()

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.tail_chance = 0.3
        self.link_tail = 400_000


class Hot(BoundedShape):
    """A few nodes, and one page that all of them want."""

    @classmethod
    def draw(cls, random: Random) -> Shape:
        options = RegionOptions(nbytes=4096, consistency="bounded", max_staleness_ns=400_000)
        members = (0, 1, 2)
        return Shape(3, 2, 1, [Region(1, options, ADDRESS_LOW, members)], 300)


class Watching(Style):
    """One writes now and then, all read."""

    __slots__ = ()

    def __init__(self, random: Random, pages: int) -> None:
        super().__init__(random, pages)
        self.weights = (1, 0, 0, 0, 0, 0)
        self.write_chance = 0.1
        self.think = 10_000


# -- the engine -----------------------------------------------------------------------------------------


class CountsFromArrival(BoundedRequester):
    """Counts a lease from the arrival of the copy."""

    __slots__ = ()

    def install(self, message: Message) -> None:
        request = self.requests.get(message.request)
        if request is not None and not message.flags & _WRITE:
            now = self.region.engine.now
            request.sent = request.asked = now
            message = structs.replace(message, value=now)
        super().install(message)


class CountsFromLastAttempt(BoundedRequester):
    """Counts a lease from when the request was sent last, whichever attempt is answered."""

    __slots__ = ()

    def install(self, message: Message) -> None:
        request = self.requests.get(message.request)
        if request is not None:
            message = structs.replace(message, value=request.asked)
        super().install(message)


class NeverAsksAgain(BoundedRequester):
    """Waits for an answer without end."""

    __slots__ = ()

    def _ask_again(self, number: int, request: Request, page: int, count: int) -> None:
        request.asked = self.region.engine.now


class DiscardsExpired(LeaseTable):
    """Discards frames when leases are over, which a worker may still reach."""

    __slots__ = ()

    def expire(self, page: int, end: int) -> None:
        for each in range(page, end):
            before = self.state[each]
            super().expire(each, each + 1)
            if before == State.SHARED and self.state[each] == State.INVALID:
                self.broken.__self__.effects.append(  # type: ignore[attr-defined]
                    Discard(self.broken.__self__.number, each, 1)  # type: ignore[attr-defined]
                )


class ExpiresNever(LeaseTable):
    """Takes a copy for good whose lease is over."""

    __slots__ = ()

    def expire(self, page: int, end: int) -> None:
        pass


class KeepsToken(BoundedHolder):
    """Sends the page with its token, and goes on writing it."""

    __slots__ = ()

    def _start(self, demand: Demand) -> None:
        self._answer(demand)


class SendsBeforeLowered(BoundedHolder):
    """Sends the page with its token while its workers still write it."""

    __slots__ = ()

    def _start(self, demand: Demand) -> None:
        super()._start(demand)
        if demand.started:
            super()._answer(demand)

    def _answer(self, demand: Demand) -> None:
        if not demand.started:
            super()._answer(demand)


class ServesWithoutToken(BoundedHolder):
    """Answers readers from a frame that it does not own any more."""

    __slots__ = ()

    def revoke(self, message: Message) -> None:
        if message.flags & _WRITE:
            super().revoke(message)
            return
        data = structs.replace(message, kind=int(Kind.DATA))
        if message.node != self.region.node:
            self.region.effects.append(SendPages(message.node, data, live=True))


class ForgetsNewOwner(BoundedDirectory):
    """Sends readers to the owner before this one."""

    __slots__ = ()

    def _note(self, node: int, page: int, count: int, taken: bool) -> None:
        if not self.region.table.owner[page]:
            super()._note(node, page, count, taken)


class AsksBusyOwner(BoundedDirectory):
    """Sends readers to the owner while the page leaves it."""

    __slots__ = ()

    def get(self, message: Message, page: int, count: int) -> None:
        if message.flags & _WRITE or page not in self.busy:
            super().get(message, page, count)
        else:
            self._start(message, page, count)


class SecondToken(BoundedDirectory):
    """Gives a page to another writer while it is on its way to one."""

    __slots__ = ()

    def get(self, message: Message, page: int, count: int) -> None:
        if message.flags & _WRITE:
            for each in range(page, page + count):
                self.busy.pop(each, None)
        super().get(message, page, count)


class UpgradesReaders(BoundedDirectory):
    """Grants the token without the contents to whoever has a copy."""

    __slots__ = ()

    def _start(self, message: Message, page: int, count: int) -> None:
        if message.flags & _WRITE:
            self.region.table.copysets[page : page + count] |= 1 << message.node
            message = structs.replace(message, flags=message.flags | int(Flag.HAVE))
        super()._start(message, page, count)


class PinsCopies(BoundedRegion):
    """Pins a copy whose lease ends."""

    __slots__ = ()
    pins_take = False


# -- the manager and the worker -------------------------------------------------------------------------


class RaisesBeforeStored(BoundedNode):
    """Lets workers read before the copy is in the frames."""

    def end(self, transfer: Transfer) -> None:
        if transfer.sender.number in self.closed:
            return
        runs = self.engine.wanted_runs(transfer.message)
        self.engine.received(transfer.message, self.world.now)
        self.world.after(20_000, self._store_later, (transfer, runs))

    def _store_later(self, argument: tuple[Transfer, list[tuple[int, int]]]) -> None:
        transfer, runs = argument
        home = self.regions[transfer.message.region]
        for first, count in runs:
            for page in range(first, first + count):
                home.frames[page][:] = transfer.payload[page - transfer.message.page]


class AnswersFromMemory(BoundedNode):
    """Sends a reader what it sent the last one."""

    def do_send_pages(self, effect: SendPages) -> None:
        if not effect.live or effect.node in self.closed or not self.network.reaches(effect.node):
            super().do_send_pages(effect)
            return
        kept: dict[int, list[int]] = self.__dict__.setdefault("kept", {})
        home = self.live(effect.message.region, effect)
        link = self.network.link(self.number, effect.node)
        transfer = LiveTransfer(link.sender, link.receiver, effect.message, home)
        for at, page in enumerate(range(effect.message.page, effect.message.page + effect.message.count)):
            key = effect.message.region << 32 | page
            transfer.payload[at] = list(kept.setdefault(key, transfer.payload[at]))
        link.send_transfer(transfer)


class PublishesLate(BoundedNode):
    """Publishes a lease that ends one bound too late."""

    def do_lease(self, effect: Lease) -> None:
        home = self.live(effect.region, effect)
        super().do_lease(Lease(effect.region, effect.page, effect.count, effect.end + home.staleness))  # type: ignore[attr-defined]


class NotesNothing(BoundedWorker):
    """Maps pages, and does not look when their leases end."""

    def note(self, end: int) -> None:
        pass


class MapsExpired(BoundedWorker):
    """Maps what is wanted, whatever its lease."""

    def wanted(self, region: WorkerRegion, page: int) -> int:
        return region.home.wanted[page]


class LeavesItToManager(BoundedWorker):
    """Asks the manager to end leases, instead of ending them itself."""

    def look(self, due: int) -> None:
        self.node.post((self._told, due))

    def _told(self, due: Any) -> None:
        super().look(due)


class LooksOnce(BoundedWorker):
    """Looks when the first lease ends, and forgets those that end later."""

    def look(self, due: int) -> None:
        note, self.note = self.note, lambda end: None  # type: ignore[method-assign]
        super().look(due)
        self.note = note  # type: ignore[method-assign]


def bounded_parts(
    *,
    requester: type[BoundedRequester] = BoundedRequester,
    holder: type[BoundedHolder] = BoundedHolder,
    directory: type[BoundedDirectory] = BoundedDirectory,
    table: type[LeaseTable] = LeaseTable,
    region_class: type[BoundedRegion] = BoundedRegion,
    faults: type[Faults] = Faults,
) -> Parts:
    """Return parts whose engines have these roles."""

    class Mutated(Engine):
        def add_region(self, region: Region) -> None:
            super().add_region(region)
            made = self.regions[region.region]
            assert isinstance(made, BoundedRegion)
            made.__class__ = region_class
            made.table.__class__ = table
            give_roles(made, requester=requester, holder=holder, directory=directory)

    return replace(BOUNDED_PARTS, engine=Mutated, faults=faults)


BOUNDED_MUTANTS: dict[str, Mutant] = {
    "lease-from-arrival": Mutant(
        "a lease is counted from the arrival of the copy", bounded_parts(requester=CountsFromArrival)
    ),
    "lease-from-last-attempt": Mutant(
        "a lease is counted from the last attempt, though an earlier one is answered",
        replace(bounded_parts(requester=CountsFromLastAttempt), timing=Slow, shape=Hot, style=Watching),
    ),
    "never-asked-again": Mutant(
        "a request that was lost with a node is not sent again",
        bounded_parts(requester=NeverAsksAgain, faults=Stormy),
    ),
    "expired-discarded": Mutant(
        "a frame is discarded when its lease is over, though a worker may reach it",
        bounded_parts(table=DiscardsExpired, faults=Stops),
    ),
    "never-expired": Mutant(
        "a copy whose lease is over counts as present at the manager", bounded_parts(table=ExpiresNever)
    ),
    "token-kept": Mutant("the previous writer goes on writing", bounded_parts(holder=KeepsToken)),
    "token-sent-before-protected": Mutant(
        "the page leaves before every worker lost access", bounded_parts(holder=SendsBeforeLowered)
    ),
    "served-without-token": Mutant(
        "readers are sent to the last owner but one, who serves them",
        bounded_parts(holder=ServesWithoutToken, directory=ForgetsNewOwner),
    ),
    "served-while-it-leaves": Mutant(
        "readers are sent to an owner whom the page is leaving",
        bounded_parts(holder=ServesWithoutToken, directory=AsksBusyOwner),
    ),
    "second-token": Mutant("a page is given to two writers at once", bounded_parts(directory=SecondToken)),
    "token-without-contents": Mutant(
        "a reader becomes the writer with what it has", bounded_parts(directory=UpgradesReaders)
    ),
    "pinned-copy": Mutant(
        "a pin to read holds a copy, whose lease ends", bounded_parts(region_class=PinsCopies)
    ),
    "raised-before-stored": Mutant(
        "workers read before the copy is in the frames", replace(BOUNDED_PARTS, node=RaisesBeforeStored)
    ),
    "answered-from-memory": Mutant(
        "the owner sends an earlier copy", replace(BOUNDED_PARTS, node=AnswersFromMemory)
    ),
    "lease-too-long": Mutant("a lease ends too late", replace(BOUNDED_PARTS, node=PublishesLate)),
    "end-forgotten": Mutant("nobody looks when a lease ends", replace(BOUNDED_PARTS, worker=NotesNothing)),
    "looked-once": Mutant(
        "only the first lease that ends is looked at", replace(BOUNDED_PARTS, worker=LooksOnce)
    ),
    "mapped-without-lease": Mutant(
        "the handler maps what is wanted though its lease is over", replace(BOUNDED_PARTS, worker=MapsExpired)
    ),
    "ended-by-the-manager": Mutant(
        "the manager, which may be stopped, has to end the leases",
        replace(BOUNDED_PARTS, worker=LeavesItToManager, faults=Stops, shape=Hot, style=Watching),
    ),
}
