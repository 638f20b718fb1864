"""How large simulated clusters of release consistency are, and what their regions are like."""

from __future__ import annotations

from random import Random

from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation.cluster import Shape
from dsm.types import Region, RegionOptions


class ReleaseShape(Shape):
    """One node to six, one worker to three on each."""

    @classmethod
    def draw(cls, random: Random) -> Shape:
        """Draw the shape of a cluster."""
        if cls is ReleaseShape and random.random() < 0.1:
            return OnePage.draw(random)
        nodes = random.choices((1, 2, 3, 4, 5, 6), (3, 30, 30, 20, 10, 7))[0]
        workers = random.choice((1, 2, 2, 3)) if nodes <= 4 else random.choice((1, 2))
        threads = random.choice((1, 1, 1, 2)) if nodes <= 3 else 1
        shape = cls(nodes, workers, threads)
        for number in range(1, random.choice((1, 1, 1, 2)) + 1):
            shape.regions.append(cls.draw_region(random, number, nodes))
        shape.steps = max(4, random.choice((80, 160, 300)) // (nodes * workers * threads))
        return shape

    @classmethod
    def draw_region(cls, random: Random, number: int, nodes: int) -> Region:
        """Draw a region: its pages, their size, and where their homes are."""
        page_size = random.choice((4096, 4096, 65536, 1 << 20, 1 << 21))
        pages = random.choice((1, 1, 2, 3, 5, 12))
        members = tuple(range(nodes))
        if random.random() < 0.15:
            members = tuple(sorted(random.sample(members, random.randint(1, nodes))))
        home: str | int = random.choice(
            ("first-touch", "first-touch", "block", "cyclic", random.choice(members))
        )
        fill = random.choice((b"", bytes([7])))
        options = RegionOptions(
            nbytes=pages * page_size, page_size=page_size, home=home, fill=fill, consistency="release"
        )
        return Region(number, options, ADDRESS_LOW + (number << 36), members)


class OnePage(ReleaseShape):
    """Two nodes with three workers each, all of which write the same page."""

    @classmethod
    def draw(cls, random: Random) -> Shape:
        """Draw the shape of a cluster."""
        shape = cls(2, 3, 1, steps=120)
        shape.regions.append(cls.draw_region(random, 1, 2))
        return shape

    @classmethod
    def draw_region(cls, random: Random, number: int, nodes: int) -> Region:
        """Draw a region."""
        options = RegionOptions(nbytes=4096, home=random.randrange(nodes), consistency="release")
        return Region(number, options, ADDRESS_LOW + (number << 36), tuple(range(nodes)))
