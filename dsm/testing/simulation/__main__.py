"""Command line of the simulator: ``python -m dsm.testing.simulation``."""

from __future__ import annotations

import argparse
import sys

from dsm.testing.simulation.runner import (
    FAULTS,
    MIN_EVENTS,
    MODEL_MUTANTS,
    MODELS,
    campaign,
    report,
    run_seed,
)


def _seeds(text: str) -> range:
    low, colon, high = text.partition(":")
    try:
        seeds = range(int(low), int(high)) if colon else range(int(low))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST or a count") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} names no seed")
    return seeds


def main(arguments: list[str] | None = None) -> int:
    """Run one seed or many; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dsm.testing.simulation", description="Simulate clusters from seeds and check them."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--seed", type=int, help="run this seed alone")
    what.add_argument(
        "--seeds", type=_seeds, default=range(1000), metavar="FIRST:LAST", help="run many seeds"
    )
    what.add_argument("--list-mutants", action="store_true", help="list the deliberate bugs")
    parser.add_argument(
        "--model", choices=tuple(MODELS), default="sequential", help="consistency (default %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes to run many seeds in")
    parser.add_argument(
        "--events", type=int, help="least events a seed (default: as many as the model needs)"
    )
    parser.add_argument(
        "--faults", choices=tuple(FAULTS), default="", help="which seeds have faults (default: some of them)"
    )
    parser.add_argument("--trace", action="store_true", help="print the whole trace of the seed")
    parser.add_argument("--mutant", default="", metavar="NAME", help="put a deliberate bug of the model in")
    parser.add_argument(
        "--max-failures", type=int, default=5, help="stop after so many (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    mutants = MODEL_MUTANTS[options.model]
    events = options.events or MIN_EVENTS[options.model]
    if options.mutant and options.mutant not in mutants:
        parser.error(f"no mutant of {options.model} is called {options.mutant!r}; see --list-mutants")
    if options.list_mutants:
        for name, mutant in mutants.items():
            print(f"{name:32} {mutant.about}")
        return 0
    if options.seed is None:
        return campaign(
            options.seeds,
            model=options.model,
            jobs=options.jobs,
            mutant=options.mutant,
            faults=options.faults,
            min_events=events,
            max_failures=options.max_failures,
        )
    parts = mutants[options.mutant].parts if options.mutant else None
    keep = 10_000_000 if options.trace else 400
    outcome = run_seed(
        options.seed,
        model=options.model,
        parts=parts,
        faults=options.faults,
        min_events=events,
        keep=keep,
        full=options.trace,
    )
    if options.trace:
        print(outcome.trace)
    if not outcome.ok:
        print(report(outcome))
        return 1
    digest = outcome.digest & (1 << 64) - 1
    print(f"seed {outcome.seed}: {outcome.events:,} events, all checks held, digest {digest:016x}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
