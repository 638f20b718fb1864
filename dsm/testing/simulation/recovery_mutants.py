"""Deliberate bugs of the engine when a node dies or a deadline passes, put into its roles.

Owns the classes; `mutants` names them and says what is wrong.
"""

from __future__ import annotations

from dsm.coherence.directory import Directory, Transaction
from dsm.coherence.holder import Holder
from dsm.coherence.messages import Kind, Message
from dsm.coherence.requester import Requester
from dsm.coherence.states import PENDING
from dsm.coherence.table import LOST


class KeepsDeadRequester(Directory):
    """Waits for ever for the confirmation of a dead requester."""

    def _abandon(self, transaction: Transaction) -> None:
        pass


class AwaitsTheDead(Directory):
    """Waits for the acknowledgement of a dead holder."""

    def node_lost(self, node: int) -> None:
        for each in self.busy.values():
            if isinstance(each, Transaction) and each.awaiting >> node & 1:
                each.awaiting |= 1 << 63
        super().node_lost(node)


class TakesLossForFresh(Directory):
    """A page that went away with its owner was never touched."""

    def _search(self, page: int, count: int, dead: int) -> None:
        table = self.region.table
        if table.copyset[page]:
            super()._search(page, count, dead)
        else:
            for one in range(page, page + count):
                table.owner[one] = 0


class ElectsUnasked(Directory):
    """Takes the first of the copyset for the new owner, though it may be waiting for the dead one's data."""

    def _search(self, page: int, count: int, dead: int) -> None:
        table = self.region.table
        copyset = table.copyset[page]
        if not copyset:
            super()._search(page, count, dead)
            return
        for one in range(page, page + count):
            table.owner[one] = (copyset & -copyset).bit_length()


class RemembersTheDead(Directory):
    """Leaves a dead node in the copysets."""

    def node_lost(self, node: int) -> None:
        before = [copyset >> node & 1 for copyset in self.region.table.copyset]
        super().node_lost(node)
        for page, had in enumerate(before):
            if had and 0 < self.region.table.owner[page] < LOST:
                self.region.table.copyset[page] |= 1 << node


class GivesUpAtOnce(Directory):
    """A page whose owner is dead is lost, whoever else has a copy."""

    def _search(self, page: int, count: int, dead: int) -> None:
        self.region.table.lose(page, count, dead)


class IgnoresVoid(Requester):
    """Goes on waiting for what a dead node was to send."""

    def void_request(self, message: Message) -> None:
        pass


class DeniesInstalled(Requester):
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


class KeepsReadingAhead(Holder):
    """Says that it does not have a page that was read ahead, and goes on waiting for it."""

    def _forget_ahead(self, page: int, end: int) -> None:
        pass


class AnswersPresent(Holder):
    """Says that it has a page which it was about to read ahead."""

    def locate(self, message: Message) -> None:
        present = Message(
            Kind.PRESENT, message.region, message.page, message.count, message.request, self.region.node
        )
        self.region.send(self.region.placement.directory(message.page), present)


class ForgetsRequest(Requester):
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


class NoDeadline(Requester):
    """Waits never end."""

    def expire(self, age: int) -> None:
        pass
