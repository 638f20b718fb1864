"""Scripted traces of release consistency: one a rule of the order of operations, named after its number.

To record anew: ``DSM_RECORD_TRACES=1 pytest tests/simulation/test_release_traces.py``; read what differs.
"""

import os
from pathlib import Path

import pytest

from dsm.testing.simulation.release.script import ReleaseScript
from dsm.testing.simulation.script import replay

TRACES = sorted((Path(__file__).parent / "traces" / "release").glob("*.txt"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path):
    recorded = path.read_text()
    now = replay(recorded, ReleaseScript())
    if os.environ.get("DSM_RECORD_TRACES"):
        path.write_text(now)
    assert now == recorded


def test_every_rule_of_release_consistency_has_a_trace():
    numbers = {int(path.stem.split("_")[1]) for path in TRACES}
    assert numbers >= {1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 14, 15, 16}
