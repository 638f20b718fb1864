"""Functions that tests of heaps run in workers: `function(node, name, ...)`; references go to and fro."""

from __future__ import annotations

import numpy as np
import pytest


def heap(node, name, options=None):
    """Open a heap and return what it is."""
    return node.heap(name, **(options or {})).options


def allocate(node, name, sizes, value=None, options=None):
    """Allocate blocks, which must be zero, and fill them; return references."""
    opened = node.heap(name, **(options or {}))
    blocks = [opened.alloc(size) for size in sizes]
    for block in blocks:
        assert not np.any(block.array())
        if value is not None:
            block.array()[:] = value
    return [block.ref() for block in blocks]


def read(node, refs):
    """Return the bytes of blocks."""
    return [bytes(ref.block().buffer) for ref in refs]


def free(node, refs):
    """Free blocks."""
    for ref in refs:
        ref.block().free()


def free_again(node, refs):
    """Free blocks; return what is said of the last one."""
    with pytest.raises(Exception) as caught:
        free(node, refs)
    return type(caught.value).__name__, str(caught.value)


def use(node, ref):
    """Touch a block; return the name of the error, if there is one."""
    try:
        array = ref.block().array()
        total = int(array.sum())
        node.check()
    except Exception as error:
        return type(error).__name__
    return total


def figures(node, name):
    """Return the figures of all nodes."""
    return node.heap(name).statistics()


def check(node, name):
    """Verify the heap; return the name and text of the error, if there is one."""
    try:
        node.heap(name).check()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def trim(node, name):
    """Give memory back."""
    node.heap(name).trim()


def destroy(node, name):
    """End the heap."""
    node.heap(name).destroy()


def requests_of(node):
    """Return how many control messages this worker has sent so far."""
    return next(node._connection.session._numbers)


def steady(node, name, size, rounds):
    """Allocate and free again and again; return how many messages that took once it had begun."""
    opened = node.heap(name, manager="pooled")
    for _ in range(3):
        opened.free(opened.alloc(size))
    before = requests_of(node)
    for _ in range(rounds):
        opened.free(opened.alloc(size))
    return requests_of(node) - before - 1
