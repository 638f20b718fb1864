"""Properties of heaps: each from an argument, the environment, the file and the default, in this order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsm.errors import UsageError
from dsm.properties import DEFAULTS, VARIABLES, heap_options

ROOT = Path(__file__).parents[1]

#: Property: what it is by argument, environment, file and default; and the option and arguments that show it.
CASES = {
    "kind": ("eager", "lazy", "eager", "lazy"),
    "min_system_alloc": (4096, "1M", "32K", 16 << 20),
    "max_bytes": ("1G", "512M", 65536, 0),
    "page_size": (65536, "8K", 16384, 4096),
    "consistency": ("release", "sequential", "release", "sequential"),
    "debug": (True, "0", True, False),
}
MEANS = {"1M": 1 << 20, "32K": 32 << 10, "1G": 1 << 30, "512M": 512 << 20, "8K": 8192, "0": False}


def _file(tmp_path, text):
    path = tmp_path / "dsm.toml"
    path.write_text(text)
    return {"DSM_CONFIG": str(path)}


def _toml(key, value):
    shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
    return f"[heap]\n{key} = {shown}\n"


@pytest.mark.parametrize("key", CASES)
def test_argument_environment_file_default(tmp_path, key):
    argument, environment, file, default = CASES[key]

    def found(given, environ):
        options, chosen = heap_options("h", {key: given}, environ)
        assert chosen == ((key,) if given is not None else ())
        return getattr(options, key)

    both = {VARIABLES[key]: str(environment), **_file(tmp_path, _toml(key, file))}
    assert found(argument, both) == MEANS.get(argument, argument)
    assert found(None, both) == MEANS.get(environment, environment)
    assert found(None, _file(tmp_path, _toml(key, file))) == MEANS.get(file, file)
    assert found(None, {}) == default == DEFAULTS[key]


@pytest.mark.parametrize(("kind", "default"), [("eager", "pooled"), ("lazy", "direct")])
def test_the_manager_of_each_kind(tmp_path, kind, default):
    other = "direct" if default == "pooled" else "pooled"
    key = f"{kind}_manager"

    def found(given, environ):
        return heap_options("h", {"kind": kind, "manager": given}, environ)[0].manager

    assert found(None, {}) == default == DEFAULTS[key]
    assert found(None, _file(tmp_path, _toml(key, other))) == other
    assert found(None, {VARIABLES[key]: default, **_file(tmp_path, _toml(key, other))}) == default
    assert found(other, {VARIABLES[key]: default}) == other
    # That of the other kind has nothing to say.
    others = "lazy_manager" if kind == "eager" else "eager_manager"
    assert found(None, {VARIABLES[others]: other}) == default


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("kind", "fast", "must be 'eager' or 'lazy'"),
        ("kind", 5, "must be 'eager' or 'lazy'"),
        ("eager_manager", "malloc", "must be 'pooled' or 'direct'"),
        ("lazy_manager", "tcmalloc", "must be 'pooled' or 'direct'"),
        ("min_system_alloc", "100", "must be 4096 to"),
        ("min_system_alloc", "1X", "write bytes, or a number with K, M, G or T"),
        ("min_system_alloc", -1, "-1"),
        ("max_bytes", 100, "at least 4096 bytes, or 0"),
        ("max_bytes", 1 << 63, "at least 4096 bytes, or 0"),
        ("page_size", 5000, "must be a power of two"),
        ("page_size", "4M", "must be a power of two"),
        ("consistency", "bounded", "must be 'sequential' or 'release'"),
        ("debug", "perhaps", "must be true or false"),
    ],
)
def test_what_is_refused_names_where_it_stands(tmp_path, key, value, said):
    if key in ("eager_manager", "lazy_manager"):
        argument = {"manager": value, "kind": key.split("_")[0]}
    else:
        argument = {key: value}
    with pytest.raises(UsageError) as caught:
        heap_options("h", argument, {})
    assert said in str(caught.value) and (key in str(caught.value) or "manager" in str(caught.value))
    with pytest.raises(UsageError) as caught:
        heap_options("h", {}, {VARIABLES[key]: str(value)})
    assert said in str(caught.value) or "bytes" in str(caught.value)
    assert VARIABLES[key] in str(caught.value)
    if value != 1 << 63:  # TOML has no such number
        environ = _file(tmp_path, _toml(key, value))
        with pytest.raises(UsageError) as caught:
            heap_options("h", {}, environ)
        assert said in str(caught.value) and f"{key} in [heap] of {environ['DSM_CONFIG']}" in str(
            caught.value
        )


@pytest.mark.parametrize(
    "contents",
    [
        b"[heap]\nkind = 'eager'\n\xff",
        b"a = " + b"[" * 100_000,
        b"[heap]\nmax_bytes = " + b"9" * 5000,
        b"[heap]\nkind = 'eager'\nkind = 'lazy'",
        b"\0" * 100,
    ],
)
def test_a_file_that_is_no_toml(tmp_path, contents):
    (tmp_path / "dsm.toml").write_bytes(contents)
    with pytest.raises(UsageError, match=r"DSM_CONFIG is '.*dsm\.toml', which is no TOML: "):
        heap_options("h", {}, {"DSM_CONFIG": str(tmp_path / "dsm.toml")})


def test_a_file_that_is_a_directory(tmp_path):
    with pytest.raises(UsageError, match=r"DSM_CONFIG is '.*', which cannot be read: Is a directory"):
        heap_options("h", {}, {"DSM_CONFIG": str(tmp_path)})


@pytest.mark.parametrize("text", ["1.5", "true", "[1, 2]", "{a = 1}", "nan", "1979-05-27", "9" * 30, "''"])
@pytest.mark.parametrize("key", ["kind", "min_system_alloc", "max_bytes", "page_size", "consistency"])
def test_values_of_other_types_name_the_file_and_the_key(tmp_path, key, text):
    environ = _file(tmp_path, f"[heap]\n{key} = {text}\n")
    with pytest.raises(UsageError) as caught:
        heap_options("h", {}, environ)
    assert f"{key} in [heap] of {environ['DSM_CONFIG']} is " in str(caught.value)


def test_a_bound_below_one_page_is_refused():
    with pytest.raises(UsageError, match="max_bytes is 8192, and page_size 16384: the heap could not"):
        heap_options("h", {"max_bytes": 8192}, {"DSM_HEAP_PAGE_SIZE": "16K"})
    assert heap_options("h", {"max_bytes": 16384, "page_size": 16384}, {})[0].max_bytes == 16384


def test_nothing_is_read_and_ignored(tmp_path):
    with pytest.raises(
        UsageError, match="DSM_HEAP_SIZE is set, which is no property; there are DSM_HEAP_KIND"
    ):
        heap_options("h", {}, {"DSM_HEAP_SIZE": "5"})
    with pytest.raises(UsageError, match=r"\[heap\] of .* has 'manager', 'size'; there are kind, "):
        heap_options("h", {}, _file(tmp_path, "[heap]\nsize = 5\nmanager = 'pooled'\n"))
    with pytest.raises(UsageError, match=r"heap is 5 in .*; it must be a table"):
        heap_options("h", {}, _file(tmp_path, "heap = 5\n"))
    with pytest.raises(UsageError, match="which is no TOML"):
        heap_options("h", {}, _file(tmp_path, "heap: 5\n"))
    with pytest.raises(UsageError, match=r"which cannot be read: No such file"):
        heap_options("h", {}, {"DSM_CONFIG": str(tmp_path / "absent.toml")})
    assert heap_options("h", {}, _file(tmp_path, "[other]\nsize = 5\n"))[0].kind == "lazy"
    assert heap_options("h", {}, {"DSM_HEAP_KIND": "", "DSM_CONFIG": ""})[0].kind == "lazy"


def test_the_page_has_every_property():
    text = (ROOT / "docs" / "memory.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `(DSM_HEAP_\w+)` \|", text, re.MULTILINE))
    assert rows == VARIABLES
