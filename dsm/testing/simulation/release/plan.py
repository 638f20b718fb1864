"""Which byte belongs to whom: the plan that keeps a random program free of data races.

Owns the division of every page into *cells*, words of 1 to 8 bytes that lie side by side, so that threads
share pages but not bytes.  Each cell has a rule:

* ``lock``: read and written only in sections under its lock;
* ``own``: one thread's;
* ``phase``: between two barriers one thread may use it, or all may read it;
* ``flag``: one thread writes it and then raises a flag; others read it if they find the flag raised;
* ``racy``: anybody's at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from dsm.testing.simulation.release.truth import PAGE_BYTES

RULES = ("lock", "own", "phase", "flag", "racy")


_CALLS = (
    (0, 0, 0, 0),
    (0, 0, 0, 0),
    (0.1, 0.1, 0, 0),
    (0, 0.4, 0, 0),
    (0, 0.2, 0, 0.3),
    (0, 0, 0, 0.2),
    (0.05, 0.3, 0.02, 0.02),
    (0.3, 0.05, 0.02, 0.1),
)


@dataclass
class Cell:
    """One word of a region."""

    region: int
    page: int
    offset: int
    width: int
    rule: str = "own"
    #: Its lock or flag, or the thread that owns it.
    owner: int = 0
    #: In each phase, who may use it; -1: all may read it.
    phases: list[int] = field(default_factory=list)


@dataclass
class Manners:
    """How the programs of one simulation look: drawn once, so that a simulation has a character."""

    #: How often each of `RULES` is chosen.
    weights: tuple[float, ...]
    #: Rounds end, and their phases are parted, with barriers; without, all rounds have the same plan.
    barriers: bool
    #: Neighbouring cells of a page mostly have the same rule and owner.
    clustered: bool
    #: In each phase a cell has the same owner as before, mostly: homes follow.
    steady: bool
    write_chance: float
    think: int
    #: How often a step is a prefetch, a pin, a merge of maps, a request for homes.
    calls: tuple[float, float, float, float]
    #: Sections under two locks.
    nested: float
    relaxed_flags: bool

    @classmethod
    def draw(cls, random: Random) -> Manners:
        """Draw manners."""
        weights = random.choice(
            (
                (1, 0, 0, 0, 0),
                (3, 1, 0, 0, 0),
                (0, 1, 3, 0, 0),
                (1, 1, 4, 1, 0),
                (2, 1, 2, 2, 0),
                (1, 0, 0, 4, 0),
                (0, 3, 2, 0, 0),
                (2, 1, 2, 1, 2),
                (1, 0, 1, 0, 5),
            )
        )
        barriers = random.random() < 0.75
        if not barriers:
            weights = (weights[0] + 1, weights[1], 0, 0, weights[4])
        return cls(
            weights=weights,
            barriers=barriers,
            clustered=random.random() < 0.5,
            steady=random.random() < 0.5,
            write_chance=random.choice((0.1, 0.4, 0.7, 0.95)),
            think=random.choice((0, 0, 500, 10_000, 150_000)),
            calls=random.choice(_CALLS),
            nested=random.choice((0, 0.2)),
            relaxed_flags=random.random() < 0.5,
        )


class Plan:
    """Cells of one round."""

    def __init__(
        self,
        random: Random,
        manners: Manners,
        regions: dict[int, int],
        threads: list[int],
        locks: list[int],
        flags: list[int],
        phases: int,
    ) -> None:
        self.random = random
        self.manners = manners
        self.threads = threads
        self.locks = locks
        self.flags = flags
        self.phases = phases
        #: flag -> thread that raises it.
        self.raisers = {flag: random.choice(threads) for flag in flags}
        self.cells: list[Cell] = []
        self._of: dict[tuple[str, int], list[Cell]] = {}
        for region, pages in regions.items():
            for page in range(pages):
                self._divide(region, page)

    def of(self, rule: str, owner: int) -> list[Cell]:
        """Return the cells with that rule and owner."""
        known = self._of.get((rule, owner))
        if known is None:
            known = [cell for cell in self.cells if cell.rule == rule and cell.owner == owner]
            self._of[rule, owner] = known
        return known

    def racy(self, region: int) -> set[tuple[int, int]]:
        """Return the bytes of a region for which nothing is promised."""
        return {
            (cell.page, offset)
            for cell in self.cells
            if cell.rule == "racy" and cell.region == region
            for offset in range(cell.offset, cell.offset + cell.width)
        }

    def _divide(self, region: int, page: int) -> None:
        random = self.random
        widths = random.choice(((1,), (2,), (4,), (8,), (1, 2, 4, 8), (8, 8, 8, 1)))
        offset = 0
        before: Cell | None = None
        while offset < PAGE_BYTES:
            width = min(random.choice(widths), PAGE_BYTES - offset)
            cell = Cell(region, page, offset, width)
            if before is not None and self.manners.clustered and random.random() < 0.8:
                cell.rule, cell.owner, cell.phases = before.rule, before.owner, before.phases
            else:
                self._assign(cell)
            self.cells.append(cell)
            before = cell
            offset += width

    def _assign(self, cell: Cell) -> None:
        random = self.random
        cell.rule = random.choices(RULES, self.manners.weights)[0]
        match cell.rule:
            case "lock":
                cell.owner = random.choice(self.locks)
            case "flag":
                cell.owner = random.choice(self.flags)
            case "own":
                cell.owner = random.choice(self.threads)
            case "phase":
                for _ in range(self.phases):
                    if cell.phases and self.manners.steady and random.random() < 0.8:
                        cell.phases.append(cell.phases[-1])
                    else:
                        cell.phases.append(random.choice((-1, random.choice(self.threads))))
