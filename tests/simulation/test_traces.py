"""Scripted traces: each file in traces/ is one interleaving, and what must come of it.

To record anew after a change of the protocol: ``DSM_RECORD_TRACES=1 pytest tests/simulation/test_traces.py``,
then read the difference.
"""

import os
from pathlib import Path

import pytest

from dsm.testing.simulation.script import replay

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path):
    recorded = path.read_text()
    now = replay(recorded)
    if os.environ.get("DSM_RECORD_TRACES"):
        path.write_text(now)
    assert now == recorded


def test_a_trace_that_does_not_fit_is_noticed():
    text = next(path.read_text() for path in TRACES if path.stem == "demands_in_order")
    assert replay(text.replace("Send to n0", "Send to n1", 1)) != text.replace("Send to n0", "Send to n1", 1)
