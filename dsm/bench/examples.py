"""The rows of whole programs: the examples on several nodes, both models, against plain numpy; placements.

Owns how an example is run and what its workers' costs add up to.  The floor is the same program with plain
numpy arrays in one process (`dsm.bench.alone`); messages and bytes are those of the whole program, from the
first array to the last barrier.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

import dsm
from dsm.bench import measure
from dsm.bench.row import Row, combine
from dsm.bench.tally import Cost
from dsm.errors import DSMError, UsageError

#: The options with which an example is measured.
OPTIONS: dict[str, tuple[str, ...]] = {
    "kmeans": ("--points", "20000", "--rounds", "10"),
    "tsp": ("--cities", "40"),
    "matmul": ("--size", "2048"),
    "sort": ("--keys", "4000000"),
}
#: Examples whose placement is compared; those that write nothing where another node reads it are left out.
PLACED: dict[str, tuple[str, ...]] = {
    **OPTIONS,
    "jacobi": ("--size", "1024", "--sweeps", "50"),
    "terrain": ("--size", "1024", "--sweeps", "20", "--output", os.devnull),
}
#: Programs that do more or less work by chance, and say how many tasks that was.
_SEARCHES = ("tsp",)
_PLACEMENTS = ("block", "cyclic", "0")
_NODES = (1, 2, 4)
_WORKERS = 4
#: Rounds of a program: each starts processes.
_ROUNDS = 3
_TIMEOUT_S = 180.0
_FOLDER = Path(dsm.__file__).parents[1] / "examples"


class Run(msgspec.Struct, frozen=True):
    """One run of a program, its nodes together."""

    #: Of a program that counts its tasks: for one task.
    seconds: float
    messages: int
    bytes: int


def program_rows(name: str) -> Callable[[measure.Progress], Iterator[Row]]:
    """Return what measures one example on all numbers of nodes."""

    def rows(progress: measure.Progress) -> Iterator[Row]:
        for nodes in _NODES:
            runs: dict[str, list[Run]] = {"sequential": [], "release": []}
            floors = []
            for turn in range(_rounds()):
                progress(f"{name} on {nodes} nodes: round {turn + 1} of {_rounds()}")
                floors.append(_plain(name, OPTIONS[name]).seconds * 1000)
                for model, done in runs.items():
                    done.append(_shared(name, OPTIONS[name], nodes, model, None))
            for model, done in runs.items():
                yield _row(f"{_label(name)}, {nodes} nodes, {model}", done, floors)

    return rows


def placement_rows(progress: measure.Progress) -> Iterator[Row]:
    """Compare the default placement of each example with the best one, under release consistency.

    The fastest of each placement's rounds counts: the best of several medians would be the luckiest one.
    """
    for name, options in PLACED.items():
        runs: dict[str | None, list[Run]] = {home: [] for home in (None, *_PLACEMENTS)}
        for turn in range(measure.ROUNDS):
            for home, done in runs.items():
                progress(f"placement, {name}, {home or 'default'}: round {turn + 1} of {measure.ROUNDS}")
                done.append(_shared(name, options, 2, "release", home))
        times = {home: [run.seconds * 1000 for run in done] for home, done in runs.items()}
        best = min(_PLACEMENTS, key=lambda home: min(times[home]))
        row = _row(f"placement: {_label(name)}, default against {_word(best)}", runs[None], times[best], 1.1)
        value, floor = min(times[None]), min(times[best])
        yield msgspec.structs.replace(row, value=value, floor=floor, ratio=value / floor)


def _word(home: str) -> str:
    return f"node {home}" if home.isdecimal() else home


def _label(name: str) -> str:
    return f"{name} (a task)" if name in _SEARCHES else name


def _rounds() -> int:
    return min(_ROUNDS, measure.ROUNDS)


def _row(name: str, runs: list[Run], floors: list[float], target: float | None = None) -> Row:
    row = combine(name, "ms", [run.seconds * 1000 for run in runs], floors, target=target)
    return msgspec.structs.replace(
        row,
        messages=round(statistics.median(run.messages for run in runs)),
        bytes=round(statistics.median(run.bytes for run in runs)),
    )


def _shared(name: str, options: tuple[str, ...], nodes: int, model: str, home: str | None) -> Run:
    launcher = ["-m", "dsm", "run", "-n", str(_WORKERS), "--nodes", str(nodes), "-m", "dsm.bench.tally"]
    placed = [] if home is None else ["--home", home]
    costs = _run([*launcher, *placed, _program(name), *options, "--consistency", model])
    by_node = {cost.node: cost for cost in sorted(costs, key=lambda cost: cost.messages)}.values()
    return Run(
        _seconds(name, costs), sum(cost.messages for cost in by_node), sum(cost.bytes for cost in by_node)
    )


def _plain(name: str, options: tuple[str, ...]) -> Run:
    return Run(_seconds(name, _run(["-m", "dsm.bench.tally", "--plain", _program(name), *options])), 0, 0)


def _seconds(name: str, costs: list[Cost]) -> float:
    """Return what one worker has said: the whole time, or that of a task."""
    for cost in costs:
        if cost.seconds is not None:
            return cost.seconds / max(1, cost.tasks)
    raise DSMError(f"the example {name} has not said how long it took")


def _program(name: str) -> str:
    file = _FOLDER / f"{name}.py"
    if not file.exists():
        raise UsageError(f"{file} is not there: run this in a clone or a source distribution of dsm")
    return str(file)


def _run(command: list[str]) -> list[Cost]:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise DSMError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return [msgspec.json.decode(line, type=Cost) for line in done.stdout.splitlines()]
