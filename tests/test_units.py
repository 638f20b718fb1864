"""Sizes and durations as people write them."""

import numpy as np
import pytest

from dsm.errors import TooLargeError, UsageError
from dsm.units import MAX_DURATION_MS, bytes_of, milliseconds_of, show_bytes, show_milliseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1K", 1024),
        ("1k", 1024),
        ("64KiB", 65536),
        ("64KB", 65536),
        ("1.5M", 3 << 19),
        (" 2 G ", 2 << 30),
        ("1T", 1 << 40),
        (4096, 4096),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "K",
        "-1",
        "1X",
        "1KK",
        "0.3B",
        "1e3",
        "9" * 5000,
        "9" * 39,
        "9" * 30 + ".5",
        "8388608T",
        -1,
        -(1 << 70),
        1.5,
        None,
        True,
        "nan",
        b"12",
        np.array([1, 2]),
        np.array(1.5),
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="size"):
        bytes_of(text)


def test_no_size_is_longer_than_a_word():
    assert bytes_of(2**64 - 1) == 2**64 - 1
    for size in (2**64, 1 << 50_000):
        with pytest.raises(TooLargeError, match="size"):
            bytes_of(size)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("250ms", 250),
        ("60s", 60_000),
        ("1.5m", 90_000),
        ("1h", 3_600_000),
        ("2", 2000),
        (0.25, 250),
        (3, 3000),
        (0.0001, 1),
        (MAX_DURATION_MS // 1000, MAX_DURATION_MS),
    ],
)
def test_durations(text, ms):
    assert milliseconds_of(text) == ms


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1d", "0", 0, -1, float("nan"), float("inf"), None, True, 10**400]
)
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="duration"):
        milliseconds_of(text)


def test_what_is_shown():
    assert [show_bytes(size) for size in (0, 17, 65536, 3 << 29)] == ["0 B", "17 B", "64 KiB", "1.5 GiB"]
    assert [show_milliseconds(ms) for ms in (250, 59_900, 300_000, 7_200_000)] == [
        "250 ms",
        "59.9 s",
        "5.0 m",
        "2.0 h",
    ]
