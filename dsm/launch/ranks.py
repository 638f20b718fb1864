"""Which ranks live on which node: pure arithmetic."""

from __future__ import annotations


def deal(ranks: int, nodes: int) -> list[range]:
    """Return for each node its ranks: contiguous blocks whose lengths differ by at most one.

    Neighbouring ranks mostly work on neighbouring data, so that blocks keep what they share on one
    node.

    >>> deal(5, 2)
    [range(0, 3), range(3, 5)]
    """
    short, longer = divmod(ranks, nodes)
    blocks = []
    start = 0
    for node in range(nodes):
        stop = start + short + (1 if node < longer else 0)
        blocks.append(range(start, stop))
        start = stop
    return blocks
