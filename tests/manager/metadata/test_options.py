"""Options that are refused: each message names the value, the bound and what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.errors import UsageError
from dsm.limits import MAX_NAME_BYTES, MAX_PAGE_BYTES, MAX_REGION_BYTES
from dsm.manager.metadata.options import check_options, check_sync, differences
from dsm.types import ArrayLayout, RegionOptions

MEMBERS = (0, 3)


def refused(match, nbytes=128, **options):
    with pytest.raises(UsageError, match=match):
        check_options(RegionOptions(nbytes, **options), MEMBERS)


@pytest.mark.parametrize("page_size", [4096 << k for k in range(10)])
def test_page_sizes_that_are_accepted(page_size):
    assert page_size <= MAX_PAGE_BYTES
    check_options(RegionOptions(128, page_size=page_size), MEMBERS)


@pytest.mark.parametrize("page_size", [0, 1, -4096, 2048, 4095, 4097, 12288, 2 * MAX_PAGE_BYTES, 2**70])
def test_page_sizes_that_are_not(page_size):
    refused(
        f"page_size={page_size} is not 4096 times a power of two up to {MAX_PAGE_BYTES}; use",
        page_size=page_size,
    )


@pytest.mark.parametrize("nbytes", [0, 1, MAX_REGION_BYTES])
def test_sizes_that_are_accepted(nbytes):
    check_options(RegionOptions(nbytes), MEMBERS)


@pytest.mark.parametrize("nbytes", [-1, MAX_REGION_BYTES + 1, 2**70])
def test_sizes_that_are_not(nbytes):
    refused(f"nbytes={nbytes} cannot be made: from 0 to {MAX_REGION_BYTES} are allowed", nbytes=nbytes)


def test_unknown_models():
    refused(
        'consistency="strong" is unknown; use "sequential" or "release" or "bounded"', consistency="strong"
    )
    refused("is unknown", consistency="a\n" * 1000)


@pytest.mark.parametrize("home", ["first-touch", "block", "cyclic", 0, 3])
def test_homes_that_are_accepted(home):
    check_options(RegionOptions(128, home=home), MEMBERS)


def test_homes_that_are_not():
    refused(
        'home="node0" is unknown; use "first-touch", "block", "cyclic" or the number of a node', home="node0"
    )
    for home in (1, -1, 2**64):
        refused(f"home={home} is not a live node; the live nodes are 0, 3", home=home)


@pytest.mark.parametrize(
    "name", ["a", "grid/2 (new)", "Höhe", "x" * MAX_NAME_BYTES, "é" * (MAX_NAME_BYTES // 2)]
)
def test_names_that_are_accepted(name):
    check_options(RegionOptions(128, name), MEMBERS)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("", "empty name"),
        ("a\nb", "cannot be printed"),
        ("a\0", "cannot be printed"),
        ("\ud800", "cannot be printed"),
        ("x" * (MAX_NAME_BYTES + 1), f"has 256 bytes in UTF-8, at most {MAX_NAME_BYTES} are"),
        ("é" * 128, "has 256 bytes in UTF-8"),
    ],
)
def test_names_that_are_not(name, match):
    refused(match, name=name)
    with pytest.raises(UsageError, match=match):
        check_sync("lock", name, 0)


def test_layouts_that_are_not():
    refused('order="A" is unknown; use "C" or "F"', layout=ArrayLayout((1,), '"<f8"', "A"))
    refused(r"shape=\(3, -1\) has a negative length", layout=ArrayLayout((3, -1), '"<f8"'))
    refused("65 dimensions", layout=ArrayLayout((1,) * 65, '"<f8"'))


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        ("latch", 0, 'kind "latch" is unknown; there are "lock", "rwlock", "semaphore", "condition"'),
        ("semaphore", -1, "value=-1: from 0 to"),
        ("semaphore", 2**63, f"value={2**63}"),
        ("condition", 0, "lock number 0"),
        ("condition", 2**32, f"lock number {2**32}"),
        ("barrier", 0, "parties=0: from 1 to"),
        ("barrier", -1, "parties=-1"),
        ("barrier", 2**31, f"parties={2**31}"),
        ("atomic", 2**63, f"initial={2**63}: it holds 64 bits"),
        ("atomic", -(2**63) - 1, "it holds 64 bits"),
    ],
)
def test_objects_that_are_not(kind, value, match):
    with pytest.raises(UsageError, match=match):
        check_sync(kind, "x", value)


layouts = st.none() | st.builds(
    ArrayLayout,
    st.lists(st.integers(0, 2), max_size=2).map(tuple),
    st.sampled_from(['"<f8"', '"<i4"']),
    st.sampled_from("CF"),
)
options = st.builds(
    RegionOptions,
    st.integers(0, 2),
    st.just("x"),
    st.sampled_from([4096, 8192]),
    home=st.sampled_from(["block", 0]),
    fill=st.sampled_from([b"", b"\1", b"\1\2"]),
    layout=layouts,
)


@given(options, options)
def test_differences_are_found_exactly_when_there_are_some(first, second):
    assert bool(differences(first, second)) == (first != second)
    assert len(differences(first, second)) == len(differences(second, first))


def test_long_values_are_cut():
    (text,) = differences(RegionOptions(1, fill=b"\1" * 5000), RegionOptions(1, fill=b"\2" * 5000))
    assert len(text) < 250
