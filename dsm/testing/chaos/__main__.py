"""Command line: ``python -m dsm.testing.chaos``."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import time
from collections import Counter

from dsm.testing import network
from dsm.testing.chaos.job import Job
from dsm.testing.chaos.plan import JobPlan, draw_jobs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dsm.testing.chaos",
        description="Kill, stop and cut off parts of jobs at random, and check what the rest sees.",
    )
    parser.add_argument("--seed", type=int, help="repeat the plan of that seed (default: a new one)")
    parser.add_argument("--events", type=int, default=200, help="events of all jobs together (%(default)s)")
    parser.add_argument("--job", type=int, help="carry out this job of the plan alone")
    parser.add_argument(
        "--max-failures", type=int, default=3, help="stop after so many failed jobs (%(default)s)"
    )
    parser.add_argument(
        "--network",
        choices=("auto", "yes", "no"),
        default="auto",
        help="put nodes into network namespaces, so that links can be cut (auto: when this process may)",
    )
    parser.add_argument("--plan", action="store_true", help="print the plan and do nothing")
    return parser


def _print(line: str) -> None:
    print(line, flush=True)


def _title(number: int, plan: JobPlan) -> str:
    return (
        f"job {number:3}: {plan.nodes} nodes of {plan.workers} workers, home {plan.home}, "
        f"pages of {plan.page_size}, {'own network' if plan.networked else 'loopback'}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Carry out a plan; return the exit status."""
    # Namespaces outlive us unless they are removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.events < 1:
        parser.error(f"--events {options.events}: at least one is needed")
    missing = network.why_not()
    if options.network == "yes" and missing:
        parser.error(f"--network yes: {missing}")
    networked = options.network != "no" and not missing
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    jobs = draw_jobs(seed, options.events, networked)
    chosen = [number for number in range(len(jobs)) if options.job in (None, number)]
    if not chosen:
        parser.error(f"--job {options.job}: this plan has jobs 0 to {len(jobs) - 1}")
    cuts = "links are cut" if networked else f"no links are cut: {missing or '--network no'}"
    _print(f"seed {seed}: {options.events} events in {len(jobs)} jobs; {cuts}")
    if options.plan:
        for number in chosen:
            _print(
                "\n".join(
                    [_title(number, jobs[number]), *(f"  {e.at_s:6.2f} s  {e}" for e in jobs[number].events)]
                )
            )
        return 0
    return _carry_out(jobs, chosen, options.max_failures, f"--seed {seed} --events {options.events}")


def _carry_out(jobs: list[JobPlan], chosen: list[int], max_failures: int, again: str) -> int:
    started = time.monotonic()
    failures: list[int] = []
    done: Counter[str] = Counter()
    for number in chosen:
        _print(_title(number, jobs[number]))
        job = Job(jobs[number], _print, number)
        problems = job.run()
        done.update(event.action.value for event in jobs[number].events)
        _print(f"job {number:3}  {'FAILED' if problems else 'good'}: {job.summary}")
        if problems:
            failures.append(number)
            _print("\n".join(f"  ! {problem}" for problem in problems))
            _print(f"  again: python -m dsm.testing.chaos {again} --job {number}")
            if len(failures) >= max_failures:
                break
    told = ", ".join(f"{count} {name}" for name, count in sorted(done.items()))
    _print(f"{sum(done.values())} events ({told}) in {time.monotonic() - started:.0f} s")
    _print(
        f"failed jobs: {', '.join(map(str, failures))}" if failures else "all checks held, nothing remains"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
