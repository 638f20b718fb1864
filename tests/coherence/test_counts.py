"""Counts of pages: exact far beyond a byte, for one page and for runs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dsm.coherence import counts
from dsm.coherence.counts import PageCounts


def test_counts_are_exact_beyond_a_byte():
    rng = random.Random(1)
    pages = PageCounts(40)
    expected = [0] * 40
    for _ in range(5000):
        page = rng.randrange(40)
        count = rng.randint(1, 40 - page)
        if rng.random() < 0.5:
            pages.run(page, count)
        else:
            pages.each(np.arange(page, page + count)[:: rng.choice((1, -1))])
        for each in range(page, page + count):
            expected[each] += 1
    assert max(expected) > 1000
    assert pages.read(0, 40).tolist() == expected
    assert pages.read(7, 5).tolist() == expected[7:12]


@pytest.mark.parametrize("times", [254, 255, 256, 257, 511, 512, 513])
def test_one_page_at_the_edges_of_its_byte(times):
    alone, together = PageCounts(3), PageCounts(3)
    for _ in range(times):
        alone.one(1)
        together.run(0, 2)
    assert alone.read(0, 3).tolist() == [0, times, 0]
    assert together.read(0, 3).tolist() == [times, times, 0]


def test_a_hot_page_too_many_stays_at_255(monkeypatch):
    monkeypatch.setattr(counts, "MAX_HOT", 1)
    pages = PageCounts(3)
    for _ in range(600):
        pages.run(1, 2)
        pages.one(0)
    assert pages.read(0, 3).tolist() == [255, 600, 255]
    pages.one(2)
    assert pages.read(2, 1).tolist() == [255]


def test_a_count_that_is_read_fits_32_bits():
    pages = PageCounts(1)
    pages._high[0] = 1 << 40
    assert pages.read(0, 1).tolist() == [counts.MAX_COUNT]
