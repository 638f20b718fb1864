"""Each example runs over nodes, workers and options, and finds its own result right.

In the suite the values are combined in pairs: of any two values, some run has both.  With DSM_MATRIX=1
(`make matrix`) every combination runs, every example on 1 to 4 nodes with 1 to 3 workers each, and every
command that the examples name.
"""

import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
EVERYTHING = os.environ.get("DSM_MATRIX", "") not in ("", "0")

#: What an example needs besides dsm.
NEEDS = {"terrain": "matplotlib", "kmeans": "sklearn", "lease_cache": "sklearn"}
#: Models that a program without data races cannot tell apart.
MODELS = ("sequential", "release")
#: What every example is run over: nodes, workers beyond one for each node, and the model.
PLACES = {"nodes": (1, 2, 4) if EVERYTHING else (1, 3), "more": (0, 2), "--consistency": MODELS}
#: The options of each: more workers than work, sizes that nothing divides, pages small and larger than all.
OPTIONS = {
    "dashboard": {
        "--size": (3, 65),
        "--steps": (1, 40),
        "--rate": (50,),
        "--staleness": (0.005, 0.05),
        "--consistency": ("bounded", *MODELS),
    },
    "jacobi": {"--size": (3, 200), "--sweeps": (0, 9)},
    "kmeans": {"--points": (3, 1001), "--clusters": (1, 3), "--rounds": (2,), "--page-size": (4096, 65536)},
    "lease_cache": {"--seconds": (0.3,), "--rows": (90, 1000)},
    "matmul": {"--size": (1, 333), "--page-size": (4096, 2097152), "--no-prefetch": (False, True)},
    "pool": {"--size": (1, 75), "--rows": (1, 20), "--workers": (1, 3)},
    "queue": {"--items": (1, 60), "--slots": (1, 5)},
    "sort": {"--keys": (3, 100_003), "--page-size": (4096, 65536)},
    "terrain": {"--size": (4, 333), "--sweeps": (1, 6)},
    "tsp": {"--cities": (3, 32)},
}
CHECKED = re.compile(r"^(checked: |\d+ items, each exactly once)", re.MULTILINE)
MOVED = re.compile(r"(\d+) pages moved")
PNG = b"\x89PNG\r\n\x1a\n"


def pairwise(rows):
    """Return some of `rows` (dicts of the same keys) in which every pair of values of all rows occurs."""
    pairs = {id(row): set(itertools.combinations(row.items(), 2)) for row in rows}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(missing & pairs[id(row)])))
        missing -= pairs[id(chosen[-1])]
    return chosen


def matrix(name):
    """Return every combination of places and options that makes sense for an example."""
    factors = PLACES | OPTIONS[name]
    rows = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    return [row for row in rows if name != "queue" or row["nodes"] + row["more"] >= 2]


def cases():
    for name in OPTIONS:
        for row in matrix(name) if EVERYTHING else pairwise(matrix(name)):
            said = "-".join(f"{key.strip('-')}={value}" for key, value in row.items())
            yield pytest.param(name, row, id=f"{name}-{said}")


def largest(name):
    """Return the last value of each of an example's options."""
    return {key: values[-1] for key, values in OPTIONS[name].items()}


def words(options):
    """Return options as words of a command line; True is a flag, False none."""
    pairs = (
        [key] if value is True else [key, str(value)] for key, value in options.items() if value is not False
    )
    return [word for pair in pairs for word in pair]


def commands(name):
    """Return the commands that the docstring of an example names."""
    lines = (EXAMPLES / f"{name}.py").read_text().split('"""')[1].splitlines()
    return [line.partition("#")[0].strip() for line in lines if re.match(r" {4}(dsm run|python) ", line)]


def run(command, cwd, status=0, environment=()):
    """Run a command as a user does; return what it printed (of an error: on stderr)."""
    launcher = {"dsm": [sys.executable, "-m", "dsm"], "python": [sys.executable]}[command[0]]
    done = subprocess.run(
        [*launcher, *map(str, command[1:])],
        cwd=cwd,
        env={**os.environ, **dict(environment)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == status, done.stdout + done.stderr
    if status == 0:
        assert done.stderr == ""
    return done.stderr if status else done.stdout


def launch(workers, nodes, *command, cwd):
    return run(["dsm", "run", "-n", workers, "--nodes", nodes, "--timeout", 60, *command], cwd)


def check_flag(name):
    return [] if name == "queue" else ["--check"]  # it always looks


@pytest.fixture(autouse=True)
def _what_it_needs(request):
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{name}.py needs {NEEDS[name]}")


def test_every_example_is_run():
    assert sorted(OPTIONS) == NAMES


def test_pairwise_has_every_pair():
    rows = matrix("kmeans")
    chosen = pairwise(rows)
    assert len(chosen) < len(rows) / 4
    for first, second in itertools.combinations(rows[0], 2):
        every = {(row[first], row[second]) for row in rows}
        assert {(row[first], row[second]) for row in chosen} == every


@pytest.mark.parametrize(("name", "row"), list(cases()))
def test_it_finds_its_result_right(name, row, tmp_path):
    nodes, workers = row["nodes"], row["nodes"] + row["more"]
    options = {key: value for key, value in row.items() if key.startswith("--")}
    said = launch(workers, nodes, EXAMPLES / f"{name}.py", *words(options), *check_flag(name), cwd=tmp_path)
    assert CHECKED.search(said), said
    assert nodes > 1 or set(MOVED.findall(said)) <= {"0"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "queue"])
def test_it_runs_without_a_launcher(name, tmp_path):
    command = ["python", EXAMPLES / f"{name}.py", *words(largest(name)), "--consistency", MODELS[-1]]
    assert CHECKED.search(run([*command, "--check"], tmp_path))


if EVERYTHING:  # this takes some minutes

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("each", [1, 2, 3])
    @pytest.mark.parametrize("nodes", [1, 2, 3, 4])
    @pytest.mark.parametrize("name", NAMES)
    def test_every_place(name, nodes, each, model, tmp_path):
        if name == "queue" and nodes * each < 2:
            pytest.skip("a producer and a consumer are needed")
        program = [EXAMPLES / f"{name}.py", *words(largest(name)), "--consistency", model, *check_flag(name)]
        assert CHECKED.search(launch(nodes * each, nodes, *program, cwd=tmp_path))

    @pytest.mark.parametrize(
        ("name", "command"), [(name, command) for name in NAMES for command in commands(name)]
    )
    def test_the_commands_of_its_docstring(name, command, tmp_path):
        (tmp_path / "examples").symlink_to(EXAMPLES)
        said = run(shlex.split(command), tmp_path)
        assert bool(CHECKED.search(said)) == ("--check" in command or name == "queue")


def test_tsp_finds_the_published_optimum(tmp_path):
    said = launch(4, 2, EXAMPLES / "tsp.py", "--check", cwd=tmp_path)
    assert "51 cities, the shortest way round is 426:" in said
    assert "checked: equal to the published optimum" in said


def test_kmeans_agrees_with_scikit_learn(tmp_path):
    pytest.importorskip("sklearn")
    said = launch(3, 2, EXAMPLES / "kmeans.py", "--check", cwd=tmp_path)
    assert "checked: equal, bit for bit" in said
    assert "checked: the inertia is that of scikit-learn" in said


def test_kmeans_without_scikit_learn_says_what_to_install(tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ImportError('No module named sklearn')")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    said = run(["python", EXAMPLES / "kmeans.py"], tmp_path, status=1, environment={"PYTHONPATH": path})
    assert said.count("\n") == 1
    assert "pip install scikit-learn" in said


def test_the_cache_is_used_in_every_way_and_runs_out(tmp_path):
    pytest.importorskip("sklearn")
    said = launch(4, 2, EXAMPLES / "lease_cache.py", "--seconds", 4, "--check", cwd=tmp_path)
    assert [f"rank {rank}: 8 of 8 tiles came from the cache, 2 mapped" in said for rank in range(4)] == [
        True
    ] * 4
    assert "dsm get: the same bytes" in said
    looks = [int(number) for number in re.findall(r"^ *(\d+) leases .* s$", said, re.MULTILINE)]
    assert looks[0] == 8 and looks == sorted(looks, reverse=True)
    assert "0 bytes in use" in said


def test_terrain_writes_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    said = launch(3, 2, EXAMPLES / "terrain.py", "--size", 64, "--sweeps", 1, cwd=tmp_path)
    assert "3 workers on 2 nodes" in said
    assert int(MOVED.search(said)[1]) > 0
    assert (tmp_path / "terrain.png").read_bytes().startswith(PNG)


def test_queue_alone_says_what_it_needs(tmp_path):
    assert "dsm run -n 2" in run(["python", EXAMPLES / "queue.py"], tmp_path, status=1)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pools_that_do_not_fork(method, tmp_path):
    command = ["python", EXAMPLES / "pool.py", "--size", 40, "--workers", 2, "--check", "--method", method]
    assert CHECKED.search(run(command, tmp_path))


#: How to spoil what an example computes, or what it compares that with; `it` is the module.
SPOILED = {
    "dashboard": "spread, n = it.spread, []; it.spread = lambda p: (n or p.fill(7), n.append(1), spread(p))",
    "jacobi": "it.alone = lambda size, sweeps: np.ones((size, size))",
    "kmeans": "it.alone = lambda data, k, n: (data[:k] + 1, None, n)",
    "lease_cache": "get = it.Cache.get; it.Cache.get = lambda self, n: (get(self, n)[0] + 1, True)",
    "matmul": "matmul = np.matmul; np.matmul = lambda a, b, out: matmul(a, b + 1, out=out)",
    "pool": "it.np.bincount = lambda *a, **k: bincount(*a, **k) + (os.getpid() != mine)",
    "sort": "it.np.concatenate = lambda parts: concatenate(parts[::-1])[::-1] + 1",
    "tsp": "it.split = lambda road, rule, price, best: (None, [])",
}


@pytest.mark.parametrize("name", sorted(SPOILED))
def test_a_wrong_result_is_told(name, tmp_path):
    program = tmp_path / "spoiled.py"
    program.write_text(
        "import importlib.util, os, sys\n"
        "import numpy as np\n"
        "bincount, concatenate, mine = np.bincount, np.concatenate, os.getpid()\n"
        f"spec = importlib.util.spec_from_file_location({name!r}, {str(EXAMPLES / name)!r} + '.py')\n"
        f"it = sys.modules[{name!r}] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(it)\n"
        f"{SPOILED[name]}\n"
        "it.main()\n"
    )
    options = {"pool": ["--method", "fork", "--size", 40], "sort": ["--keys", 1000], "matmul": ["--size", 50]}
    said = run(["python", program, "--check", *options.get(name, [])], tmp_path, status=1)
    assert said.startswith("wrong: ")
    assert said.count("\n") == 1


def test_the_first_program_of_the_readme(tmp_path):
    readme = (EXAMPLES.parent / "README.md").read_text()
    program = tmp_path / "first.py"
    program.write_text(readme.split("```python\n")[1].split("```")[0])
    last, total = launch(4, 2, program, cwd=tmp_path).split()
    assert float(last) == 999_999.0**2
    assert float(total) == pytest.approx(sum(float(k) ** 2 for k in range(1_000_000)))


@pytest.mark.parametrize("output", ["/dev/full", "/nowhere/terrain.png"])
def test_a_picture_that_cannot_be_written_is_one_line_and_a_failure(output):
    """Whatever keeps it from being written: a full disk, a directory that is not there."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "terrain.py"), "--size", "64", "--output", output],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"the picture cannot be written to {output}: ")


TINY_DISK = """
set -e
mount -t tmpfs -o size=64k none "$1"
"$2" "$3" --size 600 --output "$1/terrain.png"
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts: needs root")
def test_a_full_disk(tmp_path):
    script = [TINY_DISK, "sh", str(tmp_path), sys.executable, str(EXAMPLES / "terrain.py")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", *script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"the picture cannot be written to {tmp_path}/terrain.png: No space left on device"
    ]
