"""A signal handler comes at every step of attaching and closing, and maps memory or closes, too."""

from __future__ import annotations

import contextlib
import itertools

import pytest

import dsm
from dsm.errors import ClosedError, UsageError
from dsm.worker import attach, connection, session
from dsm.worker import node as node_module
from steps import Handler

LINES = {module.__name__ for module in (attach, connection, node_module, session)}


@pytest.mark.parametrize("action", ["map", "close"])
def test_at_every_step_of_a_close(manager, monkeypatch, action):
    monkeypatch.setenv("DSM_NODE", manager)

    def handler():
        if action == "map":
            with contextlib.suppress(ClosedError):
                node.region(None, 100).buffer[0] = 1
        else:
            node.close()

    for at in itertools.count(1):
        node = dsm.attach()
        array = node.array(f"{action} {at}", 10)
        come = Handler(at, handler, LINES)
        with come:
            node.close()
        assert node.closed
        with pytest.raises(ClosedError):
            array.sum()
        if come.left > 0:
            break
    assert at > 20


def test_at_every_step_of_attaching(manager, monkeypatch):
    monkeypatch.setenv("DSM_NODE", manager)
    refused = []

    def handler():
        try:
            dsm.attach().region(None, 100).buffer[0] = 1
        except UsageError as error:
            refused.append(error)

    for at in itertools.count(1):
        come = Handler(at, handler, LINES)
        with come:
            node = dsm.attach()
        node.region(None, 100).buffer[0] = 1
        node.close()
        if come.left > 0:
            break
    assert at > 20 and len(refused) < at
    assert all("in the middle of another" in str(error) for error in refused)
