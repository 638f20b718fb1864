"""What a node sent to another one is what that one received: messages and bytes of every kind."""

from __future__ import annotations

from dsm.testing import Cluster


def fill(node, pages):
    node.array("a", pages * 512, "f8")[:] = 1.0


def read(node, pages):
    return node.array("a", pages * 512, "f8").sum()


def counted(node):
    numbers = vars(node.statistics())
    return {name: count for name, count in numbers.items() if name.startswith("message")}


def settle(node):
    """Return when all that this node and node 0 have sent each other so far has arrived.

    What nobody waits for leaves behind the next message: the second question follows it, as does its answer.
    """
    names = (f"settle {number}" for number in range(100))
    cell = next(atomic for atomic in map(node.atomic, names) if atomic._described.home == 0)
    for _ in range(2):
        cell.load()


def test_what_leaves_arrives():
    with Cluster(nodes=2) as cluster:
        writer, reader = cluster.workers
        writer.call(fill, 100)
        reader.call(settle)
        before = cluster.all(counted)
        assert reader.call(read, 100) == 51_200
        reader.call(settle)
        after = cluster.all(counted)
    sent, received = ({name: b[name] - a[name] for name in a} for a, b in zip(before, after, strict=True))
    for kind in ("messages", "message_bytes"):
        assert (sent[f"{kind}_out"], sent[f"{kind}_in"]) == (received[f"{kind}_in"], received[f"{kind}_out"])
    assert sent["message_bytes_out"] > 100 * 4096
    assert 0 < received["messages_out"] <= 100
