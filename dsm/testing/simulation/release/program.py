"""Programs that follow a plan: sections under locks, phases between barriers, flags, and accesses at will.

Owns the text of one thread's program.  Every access is one that the plan allows it, so that the program has
no data race except on cells that are for everybody.
"""

from __future__ import annotations

from random import Random

from dsm.testing.simulation.program import MERGE, PIN, PREFETCH, REHOME, UNIQUE, UNPIN, Call, Operation
from dsm.testing.simulation.release.calls import TimedCall
from dsm.testing.simulation.release.plan import Cell, Plan
from dsm.testing.simulation.release.thread import Word
from dsm.testing.simulation.release.truth import PAGE_BYTES
from dsm.wire.calls import Op

#: The cluster-wide object of ``node.acquire()`` and ``node.release()``.
FENCE = 1


class Author:
    """Writes the program of one thread for one round."""

    def __init__(self, plan: Plan, thread: int, raised: dict[int, int], barrier: int) -> None:
        self.plan = plan
        self.thread = thread
        #: How often each flag was raised in earlier rounds.
        self.raised = raised
        self.barrier = barrier
        self.random: Random = plan.random
        self.program: list[Operation] = []
        #: phase -> cells that this thread may use without asking, and whether it may write them.
        self._usable: dict[int, list[tuple[Cell, bool]]] = {}

    def write(self, steps: int) -> list[Operation]:
        """Return a program of about `steps` operations."""
        plan = self.plan
        for phase in range(plan.phases):
            mine = [flag for flag in plan.flags if plan.raisers[flag] == self.thread]
            for _ in range(max(1, steps // plan.phases)):
                self._step(phase)
                if mine and phase == plan.phases // 2 and self.random.random() < 0.3:
                    self._raise(mine.pop())
            if phase == plan.phases // 2:
                for flag in mine:
                    self._raise(flag)
            if plan.manners.barriers:
                self.program.append(TimedCall(Op.BARRIER_WAIT, self.barrier, self.thread))
        return self.program

    def _step(self, phase: int) -> None:
        random, manners = self.random, self.plan.manners
        dice = random.random()
        prefetch, pin, merge, rehome = manners.calls
        if dice < prefetch:
            self._prefetch()
        elif dice < prefetch + pin:
            self._pin(phase)
        elif dice < prefetch + pin + merge:
            region, page, count = self._range(8)
            self.program.append(Call(MERGE, region, page, count))
        elif dice < prefetch + pin + merge + rehome:
            region, page, count = self._range(5)
            self.program.append(
                Call(REHOME, region, page, count, patience=random.choice((0, 0, 2_000, 400_000)))
            )
        else:
            rule = random.choices(("lock", "free", "flag"), self._weights())[0]
            if rule == "lock":
                self._section()
            elif rule == "flag":
                self._look()
            else:
                self._access(self._free(phase))

    def _weights(self) -> tuple[float, float, float]:
        lock, own, phase, flag, racy = self.plan.manners.weights
        return lock, own + phase + racy or 0.001, flag

    # -- accesses ---------------------------------------------------------------------------------

    def _free(self, phase: int) -> list[tuple[Cell, bool]]:
        """Return the cells that this thread may use without asking, and whether it may write them."""
        known = self._usable.get(phase)
        if known is not None:
            return known
        found = self._usable[phase] = []
        for cell in self.plan.cells:
            if cell.rule == "racy" or (cell.rule == "own" and cell.owner == self.thread):
                found.append((cell, True))
            elif cell.rule == "phase" and cell.phases[phase] in (self.thread, -1):
                found.append((cell, cell.phases[phase] == self.thread))
        return found

    def _access(self, cells: list[tuple[Cell, bool]]) -> None:
        """One instruction: mostly one access, now and then several on different pages."""
        if not cells:
            return
        cell, may_write = self.random.choice(cells)
        chosen = [(cell, may_write)]
        if self.random.random() < 0.15:
            others = [
                each
                for each in cells
                if each[0].width == cell.width and each[0].region == cell.region and each[0] is not cell
            ]
            if others:
                chosen.append(self.random.choice(others))
        self.program.append(self._word(chosen))

    def _word(self, chosen: list[tuple[Cell, bool]]) -> Word:
        random, manners = self.random, self.plan.manners
        accesses = tuple(
            (
                cell.page,
                cell.offset,
                UNIQUE if may_write and random.random() < manners.write_chance else None,
            )
            for cell, may_write in chosen
        )
        cell = chosen[0][0]
        think = random.randrange(manners.think) if manners.think else 0
        return Word(cell.region, accesses, cell.width, 16 * random.randrange(1, 30) + cell.region, think)

    # -- synchronization --------------------------------------------------------------------------

    def _section(self) -> None:
        """Use cells under their lock; now and then those of a second lock, too."""
        random = self.random
        plan = self.plan
        if not plan.locks:
            return
        first = random.choice(plan.locks)
        body = self._body(first)
        later = [lock for lock in plan.locks if lock > first]
        if later and random.random() < plan.manners.nested:
            second = random.choice(later)
            body += self._locked(second, self._body(second))
        self.program += self._locked(first, body)

    def _locked(self, lock: int, body: list[Operation]) -> list[Operation]:
        patience = self.random.choice((0, 0, 0, 0, 20_000, 500_000))
        acquire = TimedCall(Op.LOCK_ACQUIRE, lock, self.thread, patience=patience, skip=len(body) + 1)
        return [acquire, *body, TimedCall(Op.LOCK_RELEASE, lock, self.thread)]

    def _body(self, lock: int) -> list[Operation]:
        cells = self.plan.of("lock", lock)
        if not cells:
            return []
        return [
            self._word([(self.random.choice(cells), True)]) for _ in range(self.random.choice((1, 2, 2, 4)))
        ]

    def _raise(self, flag: int) -> None:
        """Write a flag's cells, and raise it."""
        cells = self.plan.of("flag", flag)
        relaxed = self.plan.manners.relaxed_flags
        for cell in self.random.sample(cells, min(len(cells), 6)):
            self.program.append(Word(cell.region, ((cell.page, cell.offset, UNIQUE),), cell.width, 5))
        if relaxed:
            self.program.append(TimedCall(Op.ATOMIC_STORE, FENCE, 1))
        self.program.append(TimedCall(Op.ATOMIC_ADD, flag, 1, relaxed=relaxed))

    def _look(self) -> None:
        """Read a flag; if it is raised, what it stands for."""
        random, plan = self.random, self.plan
        if not plan.flags:
            return
        flag = random.choice(plan.flags)
        cells = plan.of("flag", flag)
        if not cells:
            return
        relaxed = plan.manners.relaxed_flags
        body: list[Operation] = [TimedCall(Op.ATOMIC_LOAD, FENCE)] if relaxed else []
        for cell in random.choices(cells, k=random.choice((1, 2, 3))):
            body.append(Word(cell.region, ((cell.page, cell.offset, None),), cell.width, 6))
        least = self.raised.get(flag, 0) + 1
        load = TimedCall(Op.ATOMIC_LOAD, flag, relaxed=relaxed, least=least, skip=len(body))
        self.program += [load, *body]

    # -- calls ------------------------------------------------------------------------------------

    def _range(self, most: int) -> tuple[int, int, int]:
        cell = self.random.choice(self.plan.cells)
        last = max(each.page for each in self.plan.cells if each.region == cell.region)
        return cell.region, cell.page, self.random.randint(1, min(most, last - cell.page + 1))

    def _prefetch(self) -> None:
        region, page, count = self._range(12)
        write = self.random.random() < 0.4
        patience = self.random.choice((0, 0, 2_000, 400_000))
        self.program.append(Call(PREFETCH, region, page, count, write, patience))

    def _pin(self, phase: int) -> None:
        """Pin, use only what is pinned (else two threads could wait for each other), unpin."""
        random = self.random
        region, page, count = self._range(4)
        free = [
            each
            for each in self._free(phase)
            if each[0].region == region and page <= each[0].page < page + count
        ]
        if not free:
            return
        write = any(may_write for _, may_write in free) and random.random() < 0.7
        body: list[Operation] = []
        for _ in range(random.randint(1, 4)):
            cell, may_write = random.choice(free)
            word = self._word([(cell, may_write and write)])
            word.think = random.choice((0, 2_000, 50_000))
            body.append(word)
        patience = random.choice((0, 0, 0, 2_000, 400_000))
        pin = Call(PIN, region, page, count, write, patience, len(body) + 1)
        self.program += [pin, *body, Call(UNPIN, region, page, count, write)]


def look_everywhere(random: Random, regions: dict[int, int]) -> list[Operation]:
    """Read every page: what is seen must be the last of everything."""
    pages = [(region, page) for region, count in regions.items() for page in range(count)]
    random.shuffle(pages)
    return [Word(region, ((page, 0, None),), PAGE_BYTES, 7) for region, page in pages]
