"""Runs simulations: one seed with its report, or many over several processes.

Owns what a run of a seed gives back, and the text of a failure: the seed, how to replay it, and the
end of the trace.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TextIO

import msgspec

from dsm.coherence.states import LEASE_TRANSITIONS, RELEASE_ONLY, TRANSITIONS, State
from dsm.errors import InternalError
from dsm.testing.simulation.bounded.cluster import BOUNDED_PARTS, BoundedCluster
from dsm.testing.simulation.bounded.mutants import BOUNDED_MUTANTS
from dsm.testing.simulation.cluster import Cluster, Coverage, Parts
from dsm.testing.simulation.faults import Calm, Faults, Stormy
from dsm.testing.simulation.mutants import MUTANTS, Mutant
from dsm.testing.simulation.release.cluster import RELEASE_PARTS, ReleaseCluster
from dsm.testing.simulation.release.mutants import RELEASE_MUTANTS
from dsm.testing.simulation.world import TRACE_TAIL, Violation

#: Consistency model -> events after which a seed has run long enough.
MIN_EVENTS = {"sequential": 3_000, "release": 2_000, "bounded": 3_000}
#: Events after which a seed that has not come to rest is called a livelock.
MAX_EVENTS = 400_000
#: Lines of the trace in the report of a failure.
REPORT_LINES = 60
#: Consistency model -> how a seed of it is simulated, and the parts that it is made of.
MODELS: dict[str, tuple[type[Cluster], Parts]] = {
    "sequential": (Cluster, Parts()),
    "release": (ReleaseCluster, RELEASE_PARTS),
    "bounded": (BoundedCluster, BOUNDED_PARTS),
}
#: Consistency model -> its deliberate bugs.
MODEL_MUTANTS: dict[str, dict[str, Mutant]] = {
    "sequential": MUTANTS,
    "release": RELEASE_MUTANTS,
    "bounded": BOUNDED_MUTANTS,
}
#: Consistency model -> rows of the transition table that are not its own.
NOT_OF: dict[str, frozenset[str]] = {
    "sequential": RELEASE_ONLY | LEASE_TRANSITIONS.keys(),
    "release": frozenset(LEASE_TRANSITIONS),
    "bounded": RELEASE_ONLY | {"downgrade", "downgraded", "invalidate", "invalidated"},
}
#: Which seeds have faults.
FAULTS: dict[str, type[Faults]] = {"some": Faults, "none": Calm, "all": Stormy}


class Outcome(msgspec.Struct):
    """What a run of one seed gave."""

    seed: int
    events: int
    #: The same for the same seed, always.
    digest: int
    #: Empty when every check held.
    failure: str
    #: (event, state before) -> times.
    coverage: Coverage
    #: What its faults hit -> times.
    faults: dict[str, int]
    trace: str = ""
    model: str = "sequential"

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return not self.failure


def run_seed(
    seed: int,
    *,
    model: str = "sequential",
    parts: Parts | None = None,
    faults: str = "",
    min_events: int = 0,
    max_events: int = MAX_EVENTS,
    keep: int = TRACE_TAIL,
    full: bool = False,
) -> Outcome:
    """Run the simulation of one seed.

    Parameters
    ----------
    seed
        Determines everything: cluster, programs, delays.
    model
        One of `MODELS`.
    parts
        Classes to build it of; None: the real ones.
    faults
        One of `FAULTS`; empty: as `parts` say, which is ``some``, faults in a part of the seeds.
    min_events
        Rounds of programs are added until so many events have happened; 0: as many as the model needs.
    max_events
        A run that has not come to rest after so many is a failure.
    keep
        Entries of the trace that are kept.
    full
        Return all of them as text, and let an unexpected exception through, with its traceback.

    Returns
    -------
    Outcome
        With `failure` empty when every check held.
    """
    cluster_class, usual = MODELS[model]
    parts = parts or usual
    if faults:
        parts = replace(parts, faults=FAULTS[faults])
    cluster = cluster_class(seed, parts=parts, keep=keep)
    world = cluster.world
    failure = ""
    try:
        cluster.run_random(min_events or MIN_EVENTS[model], max_events)
    except (Violation, InternalError) as error:
        failure = f"{type(error).__name__}: {error}"
    except Exception as error:  # an engine that trips over itself is a finding, not the end of the run
        failure = f"{type(error).__name__}: {error} (run the seed alone for the traceback)"
        if full:
            print(world.story())
            raise
    trace = world.story(keep) if failure or full else ""
    hit = dict(cluster.losses.tally)
    return Outcome(seed, world.events, world.digest, failure, cluster.coverage, hit, trace, model)


def report(outcome: Outcome, lines: int = REPORT_LINES) -> str:
    """Return the text of a failure."""
    tail = "\n".join(outcome.trace.splitlines()[-lines:])
    model = "" if outcome.model == "sequential" else f" --model {outcome.model}"
    return (
        f"seed {outcome.seed} failed after {outcome.events} events: {outcome.failure}\n"
        f"the last {lines} entries of its trace:\n{tail}\n"
        f"replay: python -m dsm.testing.simulation{model} --seed {outcome.seed} --trace"
    )


def rows_not_taken(coverage: Coverage, model: str = "sequential") -> list[str]:
    """Return the rows of a model's transition table that `coverage` lacks, as ``event STATE``."""
    return [
        f"{event} {State(before).name}"
        for event, row in {**TRANSITIONS, **LEASE_TRANSITIONS}.items()
        if event not in NOT_OF.get(model, ())
        for before in row
        if (event, int(before)) not in coverage
    ]


def _work(job: tuple[int, str, str, str, int]) -> Outcome:
    seed, model, mutant, faults, min_events = job
    parts = MODEL_MUTANTS[model][mutant].parts if mutant else None
    return run_seed(seed, model=model, parts=parts, faults=faults, min_events=min_events)


def run_many(
    seeds: Iterable[int],
    *,
    model: str = "sequential",
    jobs: int = 1,
    mutant: str = "",
    faults: str = "",
    min_events: int = 0,
) -> Iterator[Outcome]:
    """Run seeds in `jobs` processes and yield their outcomes as they come.

    Closing the iterator early ends the processes.
    """
    work = ((seed, model, mutant, faults, min_events) for seed in seeds)
    if jobs <= 1:
        yield from map(_work, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_work, work, chunksize=8)


def campaign(
    seeds: range, *, model: str, jobs: int, mutant: str, faults: str, min_events: int, max_failures: int
) -> int:
    """Run many seeds with a progress line; return the exit status: 1 when one failed."""
    out: TextIO = sys.stdout
    began = time.monotonic()
    events = done = failures = 0
    least = 0
    coverage: Coverage = {}
    hit: Counter[str] = Counter()
    terminal = out.isatty()
    outcomes = run_many(seeds, model=model, jobs=jobs, mutant=mutant, faults=faults, min_events=min_events)
    for outcome in outcomes:
        done += 1
        events += outcome.events
        least = min(least or outcome.events, outcome.events)
        for row, times in outcome.coverage.items():
            coverage[row] = coverage.get(row, 0) + times
        hit.update(outcome.faults)
        if not outcome.ok:
            failures += 1
            print(f"{chr(13) if terminal else ''}{report(outcome)}\n", file=out)
            if failures >= max_failures:
                print(f"stopped after {failures} failures", file=out)
                break
        if terminal or done % 500 == 0:
            rate = events / (time.monotonic() - began)
            line = f"{done}/{len(seeds)} seeds, {failures} failed, {events:,} events, {rate:,.0f}/s"
            print(f"\r{line}" if terminal else line, end="" if terminal else "\n", flush=True, file=out)
    took = time.monotonic() - began
    print(
        f"{chr(10) if terminal else ''}{done} seeds, {failures} failed, {events:,} events "
        f"(at least {least:,} a seed) in {took:.1f} s, {events / took:,.0f} events/s",
        file=out,
    )
    missing = rows_not_taken(coverage, model)
    if hit:
        print("what the faults hit:", file=out)
        for what in sorted(hit):
            print(f"{hit[what]:9,}  {what}", file=out)
    print(f"rows of the transition table never taken: {', '.join(missing) or 'none'}", file=out)
    return 1 if failures else 0
