"""Descriptions of arrays: what travels says everything, and what cannot be shared is refused by name."""

import numpy as np
import pytest

from dsm.errors import LimitError, UsageError
from dsm.worker import layouts

DTYPES = [
    "f8",
    ">i4",
    "?",
    "c16",
    "f2",
    np.longdouble,
    "M8[us]",
    "m8",
    "S5",
    "U3",
    "V7",
    [("a", "i1"), ("b", ">f8", (2, 3))],
    np.dtype("i1,f8", align=True),
    np.dtype({"names": ["b", "a"], "formats": ["i4", "i2"], "offsets": [0, 2], "itemsize": 20}),
    np.dtype([(("Title", "x"), "i4")]),
    [("p", [("q", "i4")], (2,))],
]


def options(shape=(2, 3), dtype="f8", name="x", **changes):
    given = {"consistency": "sequential", "page_size": 4096, "home": "first-touch", "fill": 0, "order": "C"}
    return layouts.array_options(name, shape, dtype, **(given | changes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dtype_survives_its_description(dtype):
    dtype = np.dtype(dtype)
    again = layouts.decode_dtype(layouts.encode_dtype(dtype))
    assert again == dtype
    assert again.isalignedstruct == dtype.isalignedstruct


@pytest.mark.parametrize("dtype", ["O", [("a", "O")], np.dtypes.StringDType()], ids=str)
def test_objects_are_refused(dtype):
    with pytest.raises(UsageError, match="objects"):
        layouts.check_dtype(dtype)


def test_what_is_no_dtype_is_named():
    with pytest.raises(UsageError, match="'nonsense'"):
        layouts.check_dtype("nonsense")


@pytest.mark.parametrize("shape", [1.5, None, "ab", (1, 2.0), -1, (3, -2)], ids=str)
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(UsageError, match="shape"):
        layouts.check_shape(shape)


@pytest.mark.parametrize(
    "shape, sizes", [(5, (5,)), ((), ()), ((0, 4), (0, 4)), ([2, 3], (2, 3)), (np.int8(7), (7,))]
)
def test_shapes(shape, sizes):
    assert layouts.check_shape(shape) == sizes


@pytest.mark.parametrize(
    "fill, dtype, data",
    [
        (0, "f8", b""),
        (0.0, "f8", b""),
        (0, "S3", b""),
        (np.nan, "f8", np.float64(np.nan).tobytes()),
        (-0.0, "f8", np.float64(-0.0).tobytes()),
        (1, ">i2", b"\0\1"),
        ("ab", "S3", b"ab\0"),
        ((1, 2), "u1,u1", b"\1\2"),
        (2.0, "u1", b"\2"),
        ("1970-01-01T00:00:01", "M8[s]", np.int64(1).tobytes()),
        (7, ("u1", (3,)), b"\7"),
        ([1, 2, 3], ("u1", (3,)), b"\1\2\3"),
    ],
    ids=str,
)
def test_a_fill_is_the_bytes_of_one_item(fill, dtype, data):
    assert layouts.encode_fill(fill, np.dtype(dtype), "C") == data


@pytest.mark.parametrize(
    "fill, dtype", [(1.5, "i4"), (300, "u1"), (np.nan, "i4"), ("x", "f8"), (1j, "f8")], ids=str
)
def test_a_fill_that_would_be_lost_is_refused(fill, dtype):
    with pytest.raises(UsageError, match="fill"):
        layouts.encode_fill(fill, np.dtype(dtype), "C")


def test_a_sub_array_dtype_becomes_dimensions():
    layout = options((4,), ("f4", (2, 3))).layout
    assert layout.shape == np.empty((4,), ("f4", (2, 3))).shape
    assert layouts.decode_dtype(layout.dtype) == "f4"


@pytest.mark.parametrize(
    "wrong",
    [
        {"page_size": 4095},
        {"page_size": 1 << 22},
        {"page_size": 2048},
        {"page_size": 4096.0},
        {"consistency": "eventual"},
        {"home": "moon"},
        {"home": -1},
        {"home": True},
        {"order": "K"},
        {"name": ""},
        {"name": "x" * 256},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": 3},
    ],
    ids=str,
)
def test_a_wrong_option_is_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        options(**wrong)


def test_too_large_is_a_limit():
    with pytest.raises(LimitError, match="divide"):
        options((1 << 30, 1 << 20))


def test_a_mismatch_names_both():
    with pytest.raises(
        UsageError, match=r"shape=\(4, 6\) \(asked for \(4, 5\)\), fill=nan \(asked for 7.0\)"
    ):
        layouts.check_same(options((4, 5), fill=7), options((4, 6), fill=np.nan))


def test_nan_equals_itself():
    layouts.check_same(options(fill=np.nan), options(fill=float("nan")))
