"""Threads that open, close and give up the same region at the same time."""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest

import dsm
from dsm import _native
from dsm.errors import LimitError
from dsm.worker import node as node_module
from dsm.worker import regions
from steps import Handler

DEADLINE_S = 20


def test_who_opens_a_region_while_it_cannot_be_mapped_maps_it(node, monkeypatch):
    """The answer to the second was sent before the manager heard that the first had no room for it."""
    region = node.region("crossed", 5000)
    region.buffer[0] = 7
    node._regions.leave(region.number)
    session, map_region = node._connection.session, regions.map_region
    found, sent = [], threading.Event()
    second = threading.Thread(target=lambda: found.append(node._regions.open(region.number)))

    def send(number, body, real=session._send):
        real(number, body)
        if threading.current_thread() is second:
            sent.set()

    def no_room(described, received):
        monkeypatch.setattr(regions, "map_region", map_region)
        second.start()
        assert sent.wait(DEADLINE_S)
        raise LimitError("no room")

    monkeypatch.setattr(session, "_send", send)
    monkeypatch.setattr(regions, "map_region", no_room)
    with pytest.raises(LimitError, match="no room"):
        node._regions.open(region.number)
    second.join(DEADLINE_S)
    assert found and found[0].buffer[0] == 7
    found[0].destroy()


def test_two_close_a_region_and_another_takes_its_place(node, monkeypatch):
    """The second finds nothing of that number any more."""
    region, close = node.region(None, 5000), _native.region_close

    def late(number):
        monkeypatch.setattr(_native, "region_close", close)
        node._regions.drop(number)
        raise FileNotFoundError(f"close region {number}")

    monkeypatch.setattr(_native, "region_close", late)
    node._regions.drop(region.number)
    assert region.closed and _native.region_close is close


def test_a_close_that_is_broken_off_can_be_repeated_or_has_closed(manager, monkeypatch):
    monkeypatch.setenv("DSM_NODE", manager)

    def break_off():
        raise KeyboardInterrupt

    for at in itertools.count(1):
        node = dsm.attach()
        leave = node._connection.close
        monkeypatch.setattr(node._connection, "close", lambda failed: None)
        come = Handler(at, break_off, {node_module.__name__})
        with come, contextlib.suppress(KeyboardInterrupt):
            node.close()
        node.close()
        assert node.closed
        leave()
        if come.left > 0:
            break
    assert at > 3
