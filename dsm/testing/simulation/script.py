"""Scripted traces: real engines driven step by step from a text file, their effects recorded.

Owns the commands.  A file is a sequence of blocks, a command line, ``----``, what came of it, and a
blank line (the form of etcd-raft's datadriven tests).  Nothing moves by itself: a message waits on its
link until ``deliver``, a payload between ``header`` and ``end``, a `Lower` until ``lowered``, and time
stands still until ``time``.  The file is the specification of one interleaving; the recorded text is
compared, never guessed.

========================================  =========================================================
``cluster nodes=3 pages=4 home=0``         begin; also ``page_size=``, ``fill=``, ``patience=``
``fault n1 p0 read w7 [worker=1 ip=5]``    a thread of n1 traps and waits as waiter 7
``prefetch n1 p0+4 read w8``               also ``pin``; ``unpin n1 p0+4 read``; ``cancel n1 w8``
``touched n1 p4``                          a worker used a marked page
``applied n1 w7``                          the woken thread has mapped its page
``deliver n1 n0``                          the next message of that link arrives; ``all`` of them
``header n1 n0``, ``end n1 n0``            the two halves of a message with pages
``lowered n1 [token]``                     the workers acknowledged (the oldest `Lower`)
``time +150`` or ``+0.5Δ``                 microseconds, or hold times, pass; engines that asked are called
``drop n1``                                the region is destroyed, as n1 learns it
``lost n1 n2``                             n1 hears that n2 is dead: their link is cut
``age n1``                                 a part of the time that n1's waits may take has passed
``pages p0+2``                             states, directory entries
``links``                                  what is on its way
``crash n2``                               n2 is gone; what it sent before may still arrive
``lose n2 n1 [count]``                     the last messages (all) on that link never arrive
========================================  =========================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dsm.coherence.engine import Engine
from dsm.coherence.messages import Kind, Lower, Message, Send, SendPages
from dsm.coherence.states import State
from dsm.coherence.table import LOST
from dsm.errors import DSMError
from dsm.limits import ADDRESS_LOW, HOLD_NS
from dsm.testing.simulation.trace import effect_text, message_text
from dsm.types import Region, RegionOptions

REGION = 1


def number_of(word: str, prefix: str) -> int:
    """Return the number in a word like ``n1``."""
    if not word.startswith(prefix):
        raise ValueError(f"{word!r}: a word like {prefix}1 is meant")
    return int(word[len(prefix) :])


def range_of(word: str) -> tuple[int, int]:
    """Return page and count of a word like ``p3+2``."""
    page, _, count = word.partition("+")
    return number_of(page, "p"), int(count or "1")


class Script:
    """Engines and links of one file."""

    consistency = "sequential"

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.links: dict[tuple[int, int], deque[Message]] = {}
        #: Messages whose header has arrived: accepted or not.
        self.open: dict[tuple[int, int], bool] = {}
        #: Tokens of `Lower` that are not done, for each node.
        self.lowering: dict[int, deque[int]] = {}
        #: Nodes that are gone; (node, other): the one heard that the other is dead.
        self.gone: set[int] = set()
        self.closed: set[tuple[int, int]] = set()
        self.now = 0
        #: Rows of the transition table taken by all nodes.
        self.coverage: dict[tuple[str, int], int] = {}
        self.said: list[str] = []

    def run(self, line: str) -> str:
        """Do one command and return what came of it."""
        self.said = []
        name, *words = line.split()
        command: Callable[[list[str]], None] | None = getattr(self, f"do_{name}", None)
        if command is None:
            raise ValueError(f"{name!r} is no command of a scripted trace")
        try:
            command(words)
        except DSMError as error:
            self.said.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        for engine in self.living():
            self.collect(engine)
        return "\n".join(self.said) or "nothing"

    def living(self) -> list[Engine]:
        """Return the engines of nodes that are not gone."""
        return [engine for engine in self.engines if engine.node not in self.gone]

    def collect(self, engine: Engine) -> None:
        """Record the effects of an engine; put its messages on their links."""
        for effect in engine.take():
            self.said.append(f"n{engine.node}: {effect_text(effect)}")
            if isinstance(effect, Send | SendPages):
                self.put(engine.node, effect.node, effect.message)
            elif isinstance(effect, Lower):
                self.lowering[engine.node].append(effect.token)

    def put(self, sender: int, receiver: int, message: Message) -> None:
        """Put a message on its link."""
        ends = sender, receiver
        if receiver in self.gone or self.closed.intersection((ends, ends[::-1])):
            self.said.append("  (goes nowhere)")
        else:
            self.links.setdefault(ends, deque()).append(message)

    def take(self, ends: tuple[int, int], message: Message) -> None:
        """A message without pages arrives."""
        self.said.append(f"n{ends[1]} gets {message_text(message)}")
        self.engines[ends[1]].message(message, self.now)

    # -- commands -----------------------------------------------------------------------------------

    def do_cluster(self, words: list[str]) -> None:
        options = {"nodes": "2", "pages": "1", "page_size": "4096", "home": "0", "fill": "", "patience": "1"}
        for word in words:
            name, _, value = word.partition("=")
            options[name] = value
        count, size = int(options["nodes"]), int(options["page_size"])
        home = options["home"]
        chosen = RegionOptions(
            nbytes=int(options["pages"]) * size,
            page_size=size,
            home=int(home) if home.isdigit() else home,
            fill=options["fill"].encode(),
            consistency=self.consistency,
        )
        region = Region(REGION, chosen, ADDRESS_LOW, tuple(range(count)))
        for node in range(count):
            engine = Engine(node, int(options["patience"]))
            engine.add_region(region)
            engine.regions[REGION].table.taken = self.coverage
            self.engines.append(engine)
            self.lowering[node] = deque()

    def do_fault(self, words: list[str]) -> None:
        node, page, access, waiter = words[:4]
        options = dict(word.split("=", 1) for word in words[4:])
        worker, ip = int(options.get("worker", 0)), int(options.get("ip", 1))
        engine = self.engines[number_of(node, "n")]
        engine.fault(
            REGION, number_of(page, "p"), access == "write", number_of(waiter, "w"), worker, ip, self.now
        )

    def do_prefetch(self, words: list[str]) -> None:
        node, pages, access, waiter = words
        engine = self.engines[number_of(node, "n")]
        engine.prefetch(REGION, *range_of(pages), access == "write", number_of(waiter, "w"), self.now)

    def do_pin(self, words: list[str]) -> None:
        node, pages, access, waiter = words
        engine = self.engines[number_of(node, "n")]
        engine.pin(REGION, *range_of(pages), access == "write", number_of(waiter, "w"), self.now)

    def do_unpin(self, words: list[str]) -> None:
        node, pages, access = words
        self.engines[number_of(node, "n")].unpin(REGION, *range_of(pages), access == "write", self.now)

    def do_cancel(self, words: list[str]) -> None:
        found = self.engines[number_of(words[0], "n")].cancel(number_of(words[1], "w"), self.now)
        self.said.append("found" if found else "not waiting")

    def do_touched(self, words: list[str]) -> None:
        self.engines[number_of(words[0], "n")].touched(REGION, number_of(words[1], "p"), 0, self.now)

    def do_applied(self, words: list[str]) -> None:
        self.engines[number_of(words[0], "n")].applied(number_of(words[1], "w"), self.now)

    def do_deliver(self, words: list[str]) -> None:
        ends = number_of(words[0], "n"), number_of(words[1], "n")
        for _ in range(len(self.links[ends]) if words[2:] == ["all"] else 1):
            message = self.links[ends][0]
            if message.kind == Kind.DATA:
                self._header(ends)
                self._end(ends)
            else:
                self.links[ends].popleft()
                self.take(ends, message)
            self.collect(self.engines[ends[1]])

    def do_header(self, words: list[str]) -> None:
        self._header((number_of(words[0], "n"), number_of(words[1], "n")))

    def do_end(self, words: list[str]) -> None:
        self._end((number_of(words[0], "n"), number_of(words[1], "n")))

    def _header(self, ends: tuple[int, int]) -> None:
        message = self.links[ends][0]
        engine = self.engines[ends[1]]
        self.open[ends] = engine.accepts(message)
        runs = " ".join(f"p{page}+{count}" for page, count in engine.wanted_runs(message))
        where = "its frames" if self.open[ends] else "scratch"
        self.said.append(f"n{ends[1]} takes {message_text(message)} into {where}; wanted: {runs or 'none'}")

    def _end(self, ends: tuple[int, int]) -> None:
        del self.open[ends]
        message = self.links[ends].popleft()
        engine = self.engines[ends[1]]
        runs = " ".join(f"p{page}+{count}" for page, count in engine.wanted_runs(message))
        self.said.append(f"n{ends[1]} has all of {message_text(message)}; wanted: {runs or 'none'}")
        engine.received(message, self.now)

    def do_lowered(self, words: list[str]) -> None:
        node = number_of(words[0], "n")
        token = int(words[1]) if len(words) > 1 else self.lowering[node][0]
        self.lowering[node].remove(token)
        self.engines[node].lowered(token, self.now)

    def do_time(self, words: list[str]) -> None:
        span = words[0]
        self.now += round(float(span[:-1]) * HOLD_NS) if span.endswith("Δ") else int(span) * 1000
        for engine in self.living():
            if engine.deadline is not None and engine.deadline <= self.now:
                self.said.append(f"n{engine.node} ticks")
                engine.tick(self.now)
                self.collect(engine)

    def do_crash(self, words: list[str]) -> None:
        number = number_of(words[0], "n")
        self.gone.add(number)
        for (_, receiver), messages in self.links.items():
            if receiver == number:
                messages.clear()

    def do_lose(self, words: list[str]) -> None:
        messages = self.links[number_of(words[0], "n"), number_of(words[1], "n")]
        for _ in range(int(words[2]) if len(words) > 2 else len(messages)):
            self.said.append(f"never arrives: {message_text(messages.pop())}")

    def do_age(self, words: list[str]) -> None:
        self.engines[number_of(words[0], "n")].age(self.now)

    def do_drop(self, words: list[str]) -> None:
        self.engines[number_of(words[0], "n")].drop_region(REGION)

    def do_lost(self, words: list[str]) -> None:
        node, dead = number_of(words[0], "n"), number_of(words[1], "n")
        self.closed.add((node, dead))
        for link in ((node, dead), (dead, node)):
            self.links.pop(link, None)
            self.open.pop(link, None)
        self.engines[node].node_lost(dead, self.now)

    def do_pages(self, words: list[str]) -> None:
        first, count = range_of(words[0])
        for page in range(first, first + count):
            live = [engine for engine in self.living() if REGION in engine.regions]
            states = " ".join(f"n{e.node} {State(e.state(REGION, page)).name}" for e in live)
            directory = live[0].regions[REGION].placement.directory(page)
            if directory in self.gone:
                self.said.append(f"p{page}: {states}; its directory n{directory} is gone")
                continue
            entry = self.engines[directory].sequential[REGION]
            owner, copyset = entry.table.owner[page], entry.table.copyset[page]
            holders = ",".join(f"n{n}" for n in range(64) if copyset >> n & 1)
            busy = ", in a transaction" if page in entry.directory.busy else ""
            kept = f"owner n{owner - 1}, copies {holders}" if owner else "unclaimed"
            if owner >= LOST:
                kept = f"went away with n{owner - LOST}"
            self.said.append(f"p{page}: {states}; {kept}{busy}")

    def do_links(self, words: list[str]) -> None:
        for (sender, receiver), messages in sorted(self.links.items()):
            for message in messages:
                self.said.append(f"n{sender} to n{receiver}: {message_text(message)}")


def replay(text: str, script: Script | None = None) -> str:
    """Run the commands of a file, in a new script or the one given, and return the file as it should read."""
    script = script or Script()
    out: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            out.append(line)
            continue
        out += [line, "----", script.run(line)]
        for old in lines:
            if old == "----":
                continue
            if not old.strip():
                out.append("")
                break
    return "\n".join(out).rstrip() + "\n"
