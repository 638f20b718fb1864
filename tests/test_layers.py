"""The floors: every file imports only from floors below its own, or from its own package.

Reads the imports with `ast`, also those inside functions and under TYPE_CHECKING.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Package or module: its floor.  The longest matching name decides.
FLOORS = {
    "dsm.errors": 0,
    "dsm.types": 0,
    "dsm.limits": 0,
    "dsm.config": 0,
    "dsm.manager_process": 0,
    "dsm.proc": 0,
    "dsm.units": 0,
    "dsm.vector_time": 0,
    "dsm.properties": 0,
    "dsm.wire": 1,
    "dsm.coherence": 1,
    "dsm.sync": 1,
    "dsm.memory": 1,
    "dsm._native": 2,
    "dsm.log": 2,
    "dsm.parent": 2,
    "dsm.reserve": 2,
    "dsm.callbacks": 2.5,
    "dsm.manager": 3,
    "dsm.worker": 4,
    "dsm.client": 4,
    "dsm": 4.5,
    "dsm.cli": 5,
    "dsm.launch": 5,
    "dsm.server": 5,
    "dsm.bench": 5,
    "dsm.testing": 5,
    "dsm.__main__": 6,
}
#: What a package must not import although it lies below: it must not know of it.
UNKNOWN_TO = {
    "dsm._native": ("dsm.wire", "dsm.coherence", "dsm.sync", "dsm.memory"),
    "dsm.worker": ("dsm.manager",),
    # A client of the lease service needs neither shim nor node.
    "dsm.client": ("dsm._native", "dsm.manager", "dsm.worker"),
    "dsm": ("dsm.manager",),
    "dsm.launch": ("dsm.manager", "dsm.worker"),
    # The simulator drives floor 1 alone.
    "dsm.testing.simulation": ("dsm._native", "dsm.manager", "dsm.worker"),
}
#: Neighbours on one floor that are known nevertheless, and why.
SIDEWAYS = {
    "dsm.config": ("dsm.errors", "dsm.limits", "dsm.units"),
    # `dsm.Server` is of the user's API, though it is a door: loaded when it is first used.
    "dsm": ("dsm.server",),
    # What is written wrong is the caller's fault.
    "dsm.units": ("dsm.errors",),
    # What is written wrong in the environment or a file is the caller's fault, too.
    "dsm.properties": ("dsm.errors", "dsm.limits", "dsm.types", "dsm.units"),
    # The errors that a manager reports keep their class.
    "dsm.manager_process": ("dsm.errors",),
    # The tables of messages and of calls are vocabulary: they import nothing of ours but floor 0.
    "dsm.wire": ("dsm.coherence.messages",),
    "dsm.sync": ("dsm.wire.calls",),
    # A benchmark measures clusters, and starts them as the users' own tests do.
    "dsm.bench": ("dsm.testing", "dsm.testing.cluster"),
    # A signal has the name by which `dsm run` calls it.
    "dsm.testing": ("dsm.launch.processes",),
}
#: Libraries with which floor 1 would no longer be pure.
IMPURE = {
    "asyncio", "cffi", "concurrent", "ctypes", "fcntl", "mmap", "multiprocessing", "queue", "random",
    "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time", "uuid",
}  # fmt: skip
#: Required dependencies; everything else must be the standard library's (extras are imported by doors).
REQUIRED = {"cffi", "msgspec", "numpy"}


def _modules():
    for path in sorted((ROOT / "dsm").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path, module):
    """Yield the full names that the file imports; ``from x import y`` gives x.y (or x if y is no module)."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                where = ROOT / name.replace(".", "/")
                is_module = where.with_suffix(".py").exists() or where.is_dir() or alias.name == "_shim"
                yield node.lineno, name if is_module else base


def _home(module):
    """Return the entry of FLOORS that `module` belongs to."""
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return module


def _wrong(module, imported):
    """Return what is wrong with `module` importing `imported`, or nothing."""
    home, other = _home(module), _home(imported)
    hidden = [
        name
        for knower, names in UNKNOWN_TO.items()
        if _within(module, knower) and (knower != "dsm" or home == "dsm")
        for name in names
    ]
    if any(_within(imported, name) for name in hidden):
        return f"{module} must not know {imported}"
    if _within(module, "dsm.testing.simulation"):
        if _within(imported, "dsm.testing.simulation") or FLOORS[other] <= 1:
            return None
        return f"the simulator drives floor 1 alone, not {imported}"
    if home == other or FLOORS[other] < FLOORS[home] or imported in SIDEWAYS.get(home, ()):
        return None
    return f"{module} (floor {FLOORS[home]}) imports {imported} (floor {FLOORS[other]})"


def _within(name, package):
    return name == package or name.startswith(package + ".")


MODULES = dict((module, path) for path, module in _modules())


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module):
    wrong = []
    for line, imported in _imports(MODULES[module], module):
        if _within(imported, "dsm"):
            complaint = _wrong(module, imported)
            if complaint:
                wrong.append(f"line {line}: {complaint}")
    assert not wrong, "\n".join(wrong)


def test_neighbours_that_are_known_know_floor_0_only():
    for name in ("dsm.coherence.messages", "dsm.wire.calls"):
        ours = {other for _, other in _imports(MODULES[name], name) if _within(other, "dsm")}
        assert all(FLOORS[_home(other)] == 0 for other in ours)


@pytest.mark.parametrize("module", [name for name in MODULES if FLOORS[_home(name)] <= 1])
def test_the_protocol_is_pure(module):
    found = {name.partition(".")[0] for _, name in _imports(MODULES[module], module)}
    assert not found & IMPURE


def test_every_package_has_a_floor():
    packages = {".".join(module.split(".")[:2]) for module in MODULES}
    assert packages <= set(FLOORS), "give a new package or module its floor in FLOORS"


def test_required_dependencies_are_all_that_is_imported():
    foreign = {}
    for module, path in MODULES.items():
        for line, imported in _imports(path, module):
            top = imported.partition(".")[0]
            if (
                top not in sys.stdlib_module_names
                and top not in REQUIRED | {"dsm"}
                and FLOORS[_home(module)] < 5
            ):
                foreign[f"{path.name}:{line}"] = top
    assert foreign == {}


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("dsm.errors", "dsm.limits"),
        ("dsm.wire.header", "dsm._native"),
        ("dsm._native", "dsm.wire"),
        ("dsm.coherence.engine", "dsm.manager.loop"),
        ("dsm.worker.attach", "dsm.manager.session"),
        ("dsm", "dsm.manager"),
        ("dsm.worker.attach", "dsm"),
        ("dsm.cli", "dsm.launch"),
        ("dsm.launch.job", "dsm.bench"),
        ("dsm.launch.job", "dsm.testing.cluster"),
        ("dsm.sync.lock", "dsm.wire.header"),
        ("dsm.testing.simulation.network", "dsm._native"),
        ("dsm.testing.simulation.network", "dsm.testing.cluster"),
    ],
)
def test_the_checker_refuses(module, imported):
    assert _wrong(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("dsm.wire.header", "dsm.wire.calls"),
        ("dsm.wire.header", "dsm.errors"),
        ("dsm.manager.loop", "dsm.coherence"),
        ("dsm", "dsm.worker"),
        ("dsm.worker.attach", "dsm._native"),
        ("dsm.bench.rows", "dsm"),
        ("dsm.__main__", "dsm.cli"),
        ("dsm.testing.simulation.network", "dsm.coherence.engine"),
        ("dsm.testing.cluster", "dsm.manager"),
    ],
)
def test_the_checker_allows(module, imported):
    assert _wrong(module, imported) is None
