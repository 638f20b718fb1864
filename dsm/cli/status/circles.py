"""Circles in a graph of who waits for whom.

Owns the search.  Pure, and knows nothing of what the vertices are.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

V = TypeVar("V", bound=Hashable)


def circles(edges: Mapping[V, Sequence[V]]) -> list[list[V]]:
    """Return one circle through each part of the graph in which everybody waits for everybody."""
    found: list[list[V]] = []
    used: set[V] = set()
    for start in edges:
        if start in used:
            continue
        path = _way_back(start, edges)
        if path and used.isdisjoint(path):
            found.append(path)
            used.update(path)
    return found


def _way_back(start: V, edges: Mapping[V, Sequence[V]]) -> list[V]:
    """Return a shortest circle from `start` to itself, without its end; empty when there is none."""
    before: dict[V, V] = {}
    queue = [start]
    for vertex in queue:
        for follower in edges[vertex]:
            if follower == start:
                path = [vertex]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return path[::-1]
            if follower not in before:
                before[follower] = vertex
                queue.append(follower)
    return []
