"""A home with objects, for tests that ask it as threads of several nodes."""

from dsm.sync.service import Reply, SyncHome
from dsm.types import SyncObject
from dsm.wire.calls import Op


class Home:
    """Threads are named (node, worker, token); every call gets a ticket of its own."""

    def __init__(self, *objects):
        self.home = SyncHome()
        for described in objects:
            self.home.create(described)
        self.number = objects[0].object
        self.tickets = 0

    def ask(self, op, thread, b=0, now=0):
        """Return the ticket and the replies."""
        self.tickets += 1
        node, worker, token = thread
        owner = (worker, token)
        replies = self.home.request(op, self.number, node, self.tickets, owner, token, b, now)
        assert all(reply.object == self.number for reply in replies)
        return self.tickets, replies

    def cancel(self, thread, waits, now=0):
        """Withdraw a call."""
        self.tickets += 1
        replies = self.home.request(
            Op.CANCEL, self.number, thread[0], self.tickets, thread[1:], waits, 0, now
        )
        return self.tickets, replies

    def gone(self, node, worker=None, died=True):
        """A worker, or a node, is gone."""
        home = self.home
        return home.node_gone(node) if worker is None else home.worker_gone(node, worker, died=died)

    def reply(self, node, ticket, status=0, result=0):
        """Return what is expected."""
        return Reply(node, ticket, status, result, self.number)

    def described(self, number=None):
        """Return the state of one object."""
        return next(each for each in self.home.describe() if each.object == (number or self.number))


def one(kind, value=0, bounded=False):
    """Return a home with one object, of number 4."""
    return Home(SyncObject(4, kind, "x", 0, value, bounded))


def is_gone(thread, node, worker):
    """Whether that thread went with the worker (None: with the node)."""
    return thread[0] == node and worker in (None, thread[1])


def party(described):
    """Return the thread of a `Party`; None for none."""
    return described and (described.node, described.worker, described.token)
