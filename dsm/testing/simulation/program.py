"""What simulated threads do: instructions and calls, and programs drawn at random.

Owns the vocabulary of programs.  An instruction (`Touch`) makes all its accesses at once, when every
page it needs is mapped, as a real one does; until then it traps at the first page that is missing.
"""

from __future__ import annotations

from random import Random

from dsm.testing.simulation.truth import READ, WORDS, WRITE

#: In place of a value to write: one that was never written before; one more than what is there; one more
#: than what this thread read last (two instructions: what others write in between is lost).
UNIQUE, INCREMENT, SUCCESSOR = -1, -2, -3

#: page, word, and None (read) or the value to write.
Access = tuple[int, int, int | None]

PREFETCH, PIN, UNPIN, MERGE, REHOME = 1, 2, 3, 4, 5
CALL_NAMES = {PREFETCH: "prefetch", PIN: "pin", UNPIN: "unpin", MERGE: "merge maps", REHOME: "rehome"}


class Touch:
    """One instruction."""

    __slots__ = ("accesses", "ip", "needs", "region", "think")

    def __init__(self, region: int, accesses: tuple[Access, ...], ip: int, think: int = 0) -> None:
        self.region = region
        self.accesses = accesses
        #: Where the instruction stands in the program's text.
        self.ip = ip
        #: Nanoseconds that the thread computes afterwards.
        self.think = think
        needs: dict[int, int] = {}
        for page, _, value in accesses:
            needs[page] = max(needs.get(page, READ), READ if value is None else WRITE)
        self.needs = tuple(needs.items())


class Call:
    """One call of the manager (`MERGE`: a doing of the worker's own)."""

    __slots__ = ("count", "kind", "page", "patience", "region", "skip", "write")

    def __init__(
        self,
        kind: int,
        region: int,
        page: int,
        count: int,
        write: bool = False,
        patience: int = 0,
        skip: int = 0,
    ) -> None:
        self.kind = kind
        self.region = region
        self.page = page
        self.count = count
        self.write = write
        #: Nanoseconds after which the thread cancels it; 0: never.
        self.patience = patience
        #: Operations to leave out when a pin fails: its body and its unpin.
        self.skip = skip


Operation = Touch | Call


class Style:
    """How programs of one seed look: how often each kind of step occurs, and where."""

    __slots__ = ("hot", "hot_chance", "scan_pages", "think", "weights", "write_chance")

    #: Kinds of steps, in the order of `weights`.
    KINDS = ("access", "pair", "scan", "prefetch", "pin", "merge")

    def __init__(self, random: Random, pages: int) -> None:
        choices = (
            (10, 0, 0, 0, 0, 0),
            (6, 2, 1, 0, 0, 0),
            (4, 1, 2, 1, 1, 0.3),
            (2, 6, 0, 0, 0, 0),
            (2, 0, 6, 2, 0, 0.3),
            (3, 1, 0.5, 1, 3, 0),
            # Ranges written while others read ahead in them.
            (0.3, 0, 3, 6, 0, 0),
        )
        self.weights = random.choice(choices)
        self.write_chance = random.choice((0.05, 0.3, 0.5, 0.9))
        #: Pages that most accesses go to.
        self.hot = random.randint(1, min(pages, 6))
        self.hot_chance = random.choice((0.0, 0.5, 0.9))
        self.scan_pages = random.choice((4, 12, 40, 100))
        self.think = random.choice((0, 500, 10_000, 150_000))


class Writer:
    """Draws programs for the regions of one simulation."""

    def __init__(self, random: Random, styles: dict[int, Style], pages: dict[int, int]) -> None:
        self.random = random
        self.styles = styles
        self.pages = pages

    def program(self, steps: int) -> list[Operation]:
        """Return a program of about `steps` operations."""
        random = self.random
        regions = list(self.styles)
        program: list[Operation] = []
        while len(program) < steps:
            region = random.choice(regions)
            style = self.styles[region]
            kind = random.choices(Style.KINDS, style.weights)[0]
            ip = 16 * random.randrange(1, 30) + region
            match kind:
                case "access":
                    program.append(self._touch(region, ip, 1))
                case "pair":
                    program.append(self._touch(region, ip, random.choice((2, 2, 3))))
                case "scan":
                    program += self._scan(region, ip)
                case "pin":
                    program += self._pin(region, ip)
                case "prefetch":
                    page, count = self._range(region, 24)
                    write = random.random() < style.write_chance
                    program.append(Call(PREFETCH, region, page, count, write, self._patience()))
                case _:
                    page, count = self._range(region, 8)
                    program.append(Call(MERGE, region, page, count))
        return program

    def _page(self, region: int) -> int:
        style = self.styles[region]
        if self.random.random() < style.hot_chance:
            return self.random.randrange(style.hot)
        return self.random.randrange(self.pages[region])

    def _range(self, region: int, most: int) -> tuple[int, int]:
        page = self._page(region)
        return page, self.random.randint(1, min(most, self.pages[region] - page))

    def _patience(self) -> int:
        return self.random.choice((0, 0, 0, 2_000, 40_000, 400_000))

    def _value(self, region: int) -> int | None:
        return UNIQUE if self.random.random() < self.styles[region].write_chance else None

    def _touch(self, region: int, ip: int, width: int) -> Touch:
        random = self.random
        accesses: tuple[Access, ...] = tuple(
            (self._page(region), random.randrange(WORDS), self._value(region)) for _ in range(width)
        )
        think = self.styles[region].think
        return Touch(region, accesses, ip, random.randrange(think) if think else 0)

    def _scan(self, region: int, ip: int) -> list[Operation]:
        random = self.random
        first = random.choice((0, self._page(region)))
        count = min(self.styles[region].scan_pages, self.pages[region] - first)
        value = UNIQUE if random.random() < self.styles[region].write_chance / 2 else None
        return [Touch(region, ((page, 0, value),), ip) for page in range(first, first + count)]

    def _pin(self, region: int, ip: int) -> list[Operation]:
        """Pin, use only what is pinned (else two threads could wait for each other), unpin."""
        random = self.random
        page, count = self._range(region, 5)
        write = random.random() < self.styles[region].write_chance
        body: list[Operation] = [
            Touch(
                region,
                ((random.randrange(page, page + count), random.randrange(WORDS), UNIQUE if write else None),),
                ip,
                random.randrange(2_000),
            )
            for _ in range(random.randint(1, 4))
        ]
        pin = Call(PIN, region, page, count, write, self._patience(), len(body) + 1)
        return [pin, *body, Call(UNPIN, region, page, count, write)]
