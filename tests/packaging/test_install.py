"""The package can be installed in each way that people install packages; without the network.

Each installation goes into a fresh environment that sees the libraries of ours (numpy, cffi, msgspec,
setuptools) through a .pth file, and is built from a copy of the sources.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for; `make` installs it

_TRY = """
import dsm, dsm._native
import dsm._native._shim as shim
from importlib.metadata import version
from pathlib import Path
print(Path(dsm.__file__).parent, Path(shim.__file__).parent, version("dsm"))
"""


def _run(*command, cwd, **options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DSM_"))}
    environment.update(PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def sources(tmp_path):
    """A copy of what is in the repository, without what was built."""
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis"
    )
    copy = tmp_path / "sources"
    shutil.copytree(ROOT, copy, ignore=ignored)
    (copy / "dsm" / "_native" / "_shim.c").unlink(missing_ok=True)
    return copy


@pytest.fixture
def python(tmp_path):
    """The interpreter of a fresh environment."""
    place = tmp_path / "environment"
    venv.create(place, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    seen = sysconfig.get_path("purelib")
    # The setuptools that comes with an older interpreter would hide ours.
    _run(place / "bin" / "python", "-m", "pip", "uninstall", "--yes", "setuptools", cwd=tmp_path)
    (place / "lib" / version / "site-packages" / "ours.pth").write_text(seen + "\n")
    return place / "bin" / "python"


def _pip(python, *arguments, cwd):
    return _run(python, "-m", "pip", *arguments, cwd=cwd)


def _works(python, tmp_path):
    """Return where the package and its shim were found; both are used once."""
    package, shim, version = _run(python, "-c", _TRY, cwd=tmp_path).split()
    assert "usage: dsm" in _run(python.parent / "dsm", "--help", cwd=tmp_path)
    assert f"dsm {version}" in _run(python.parent / "dsm", "version", cwd=tmp_path)
    return Path(package), Path(shim)


def test_install_from_the_sources(sources, python, tmp_path):
    _pip(python, "install", "--no-deps", sources, cwd=tmp_path)
    package, shim = _works(python, tmp_path)
    assert python.parents[1] in package.parents
    assert shim == package / "_native"


def test_editable_install(sources, python, tmp_path):
    _pip(python, "install", "--no-deps", "--editable", sources, cwd=tmp_path)
    package, shim = _works(python, tmp_path)
    assert package == sources / "dsm"
    assert shim == package / "_native"
    (sources / "dsm" / "added.py").write_text("VALUE = 7\n")
    assert _run(python, "-c", "import dsm.added; print(dsm.added.VALUE)", cwd=tmp_path) == "7\n"


def test_wheel(sources, python, tmp_path):
    _pip(python, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", sources, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("dsm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "dsm/py.typed" in names
    assert any(name.startswith("dsm/_native/_shim.") and name.endswith(".so") for name in names)
    assert not [
        name
        for name in names
        if name.endswith((".c", ".h", ".cdef")) or name.startswith(("tests", "examples"))
    ]
    _pip(python, "install", "--no-deps", wheel, cwd=tmp_path)
    _works(python, tmp_path)


def test_sdist_builds_by_itself(sources, python, tmp_path):
    build = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    (tmp_path / "dist").mkdir()
    _run(python, "-c", build, tmp_path / "dist", cwd=sources)
    (sdist,) = (tmp_path / "dist").glob("dsm-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {
        path.name for path in (sources / "dsm" / "_native").iterdir() if path.suffix in (".h", ".c", ".cdef")
    }
    assert {f"dsm/_native/{name}" for name in native - {"_shim.c"}} <= names
    assert {"LICENSE", "Makefile", "README.md", ".ci/prerequisites.sh", "examples/terrain.py"} <= names
    _pip(python, "install", "--no-deps", sdist, cwd=tmp_path)
    _works(python, tmp_path)
