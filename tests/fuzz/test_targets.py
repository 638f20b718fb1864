"""The targets of `make fuzz` under hypothesis, and the target itself for a moment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsm.errors import AuthenticationError, WireError
from dsm.wire.handshake import Client, Server
from fuzz import targets

HERE = Path(__file__).parent
SEEDS = list(targets.seeds())


def test_every_target_has_good_seeds():
    for seed in SEEDS:
        targets.one(seed)
    assert {seed[0] for seed in SEEDS} == set(range(len(targets.TARGETS)))


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.__name__)
class TestTargets:
    @settings(max_examples=150)
    @given(data=st.binary(max_size=400))
    def test_arbitrary_bytes(self, target, data):
        target(data)

    @settings(max_examples=150)
    @given(
        seed=st.sampled_from(SEEDS),
        edits=st.lists(st.tuples(st.integers(0, 400), st.sampled_from("dis"), st.binary(max_size=6))),
    )
    def test_good_messages_that_were_damaged(self, target, seed, edits):
        data = bytearray(seed[1:])
        for place, how, what in edits:
            place %= len(data) + 1
            size = len(what)
            if how == "s":  # substituted
                data[place : place + size] = what
            elif how == "i":  # inserted
                data[place:place] = what
            else:  # dropped
                del data[place : place + size]
        target(bytes(data))


class Handshakes(RuleBasedStateMachine):
    """Somebody without the secret between an honest client and two honest servers.

    He records, cuts, joins, replays and reflects what the others say, as often as he likes.
    """

    @initialize(clusters=st.sampled_from([targets.CLUSTER, b"x" * 16]))
    def begin(self, clusters):
        self.client = Client(targets.SECRET, b"c" * 32, node=3, cluster=targets.CLUSTER)
        nonces = iter((b"s" * 32, b"t" * 32))
        self.servers = [
            Server(targets.SECRET, next(nonces), node=number, cluster=cluster)
            for number, cluster in enumerate((targets.CLUSTER, clusters))
        ]
        self.engines = [self.client, *self.servers]
        self.said = [self.client.start()]
        #: What went into and came out of each engine.
        self.fed = {engine: b"" for engine in self.engines}
        self.told = {engine: b"" for engine in self.engines}
        self.told[self.client] = self.said[0]
        self.dead = set()

    def _feed(self, number, data):
        engine = self.engines[number]
        if engine in self.dead or not data:
            return
        self.fed[engine] += data
        try:
            out = engine.feed(data)
        except (AuthenticationError, WireError):
            self.dead.add(engine)
            out = engine.refusal
        if out:
            self.said.append(out)
            self.told[engine] += out

    @rule(number=st.integers(0, 2), which=st.integers(0), low=st.integers(0, 200), size=st.integers(0, 200))
    def pass_on(self, number, which, low, size):
        """Give an engine (a part of) something that somebody has said."""
        said = self.said[which % len(self.said)]
        self._feed(number, said[low % (len(said) + 1) :][: size or None])

    @rule(number=st.integers(0, 2), which=st.integers(0))
    def replay(self, number, which):
        self._feed(number, self.said[which % len(self.said)])

    @rule(number=st.integers(0, 2), data=st.binary(max_size=80))
    def invent(self, number, data):
        self._feed(number, data)

    @rule(number=st.integers(0, 2), which=st.integers(0), place=st.integers(0), mask=st.integers(1, 255))
    def alter(self, number, which, place, mask):
        data = bytearray(self.said[which % len(self.said)])
        data[place % len(data)] ^= mask
        self._feed(number, bytes(data))

    @precondition(lambda self: hasattr(self, "client"))
    @invariant()
    def who_is_believed_has_said_it(self):
        """A proof convinces only whom it was made for: then he has passed on honestly."""
        for server in self.servers:
            if server.done:
                assert self.told[self.client].startswith(self.fed[server][:98])
                assert self.fed[self.client].startswith(self.told[server][:60])
        if self.client.done:
            assert any(self.told[server].startswith(self.fed[self.client][:98]) for server in self.servers)


TestHandshakes = Handshakes.TestCase
TestHandshakes.settings = settings(max_examples=60, stateful_step_count=20)


CLAIMS = """
import resource, sys
sys.path[:0] = [{tests!r}]
import msgspec
from fuzz import targets
from dsm.wire import control, membership as meta
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
huge = [bytes([kind]) + b"\\xff" * 4 for kind in (0xDD, 0xDF, 0xC6, 0xDB)]
tried = 0
for seed in targets.seeds():
    if seed[0] in (4, 5):
        for place in range(2, len(seed)):
            for claim in huge:
                targets.one(seed[:place] + claim + seed[place:])
                targets.one(seed[:place] + claim + seed[place + 1:])
                tried += 1
        targets.one(seed[:2] + b"\\x91" * 200_000)
        targets.one(seed[:2] + b"\\x81\\xa4body" * 40_000)
print(tried)
"""


def test_lengths_that_are_only_announced_cost_no_memory():
    """Every place of every message claims four thousand million items; 32 MiB are enough."""
    script = CLAIMS.format(tests=str(HERE.parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs the extra `fuzz`")
def test_the_fuzzer_runs_and_finds_what_is_planted(tmp_path):
    script = [sys.executable, str(HERE / "run.py")]
    good = subprocess.run(
        script,
        env=os.environ | {"FUZZ_SECONDS": "2"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert good.returncode == 0 and "nothing found" in good.stdout, good.stderr
    planted = subprocess.run(
        script,
        env=os.environ | {"FUZZ_SECONDS": "30", "FUZZ_PLANT": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert planted.returncode == 1 and "targets.one(bytes.fromhex(" in planted.stdout, planted.stdout
    assert not list(tmp_path.iterdir()), "nothing is left behind"
