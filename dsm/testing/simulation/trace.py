"""Entries of a simulation's trace, and how they read.

Owns the list of happenings and their wording.  An entry is a tuple of integers (time, what, node, a,
b, c) and an object for the reader; text is made only when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from dsm.coherence.messages import (
    Acquired,
    Apply,
    Diff,
    Discard,
    Effect,
    Fill,
    Flag,
    Forward,
    Kind,
    Level,
    Lower,
    LowerRuns,
    Message,
    Raise,
    Released,
    Runs,
    Send,
    SendPages,
    Twin,
    Wake,
)

#: time, what, node, a, b, c, more
Entry = tuple[int, int, int, int, int, int, object]


class What(IntEnum):
    """Kinds of trace entries."""

    READ = 1
    WRITE = 2
    TRAP = 3
    POST = 4
    WAKE = 5
    LOCK = 6
    PROTECT = 7
    UNLOCK = 8
    FREE = 9
    DONE = 10
    CLOSED = 11
    CALL = 12
    COMMAND = 13
    ACKNOWLEDGE = 14
    EFFECT = 15
    ASK = 16
    LOWERED = 17
    MESSAGE = 18
    HEADER = 19
    RECEIVED = 20
    DRAINED = 21
    SENT = 22
    TICK = 23
    APPLIED = 24
    TOUCHED = 25
    DROP = 26
    DROP_MAP = 27
    ROUND = 28
    SYNC = 29
    DEATH = 30
    BURIED = 31
    CRASH = 32
    DECLARED = 33
    LOST = 34
    CUT = 35
    MENDED = 36
    STOPPED = 37
    AGE = 38
    DIFF = 39
    FENCE = 40


_TEXT = {
    What.READ: "thread {a} reads r{b} p{c}: {more}",
    What.WRITE: "thread {a} writes r{b} p{c}: {more}",
    What.TRAP: "thread {a} traps at r{b} p{c} {more}",
    What.POST: "thread {a} posts waiter {b}",
    What.WAKE: "thread {a} wakes, waiter {b}, status {c}",
    What.LOCK: "worker {a} locks r{b} p{c}",
    What.PROTECT: "worker {a} maps r{b} p{c} {more}",
    What.UNLOCK: "worker {a} stores and unlocks r{b} p{c}",
    What.FREE: "thread {a} frees the slot of waiter {b}",
    What.DONE: "thread {a} has finished",
    What.CLOSED: "thread {a} finds r{b} closed",
    What.CALL: "thread {a} calls: {more}",
    What.COMMAND: "worker {a} obeys command {b}: {more}",
    What.ACKNOWLEDGE: "worker {a} acknowledges command {b}",
    What.EFFECT: "does {more}",
    What.ASK: "asks worker {a}, command {b}, token {c}",
    What.LOWERED: "token {a} lowered",
    What.MESSAGE: "gets {more} from n{a}",
    What.HEADER: "sees the header of {more} from n{a}, accepts: {b}",
    What.RECEIVED: "has received {more} from n{a}",
    What.DRAINED: "drained {more} from n{a}",
    What.SENT: "the last byte of {more} to n{a} left",
    What.TICK: "ticks",
    What.APPLIED: "learns that waiter {a} applied",
    What.TOUCHED: "hears that worker {a} touched r{b} p{c}",
    What.DROP: "drops r{a}",
    What.DROP_MAP: "worker {a} unmaps r{b} p{c} to merge maps",
    What.ROUND: "round {a} begins",
    What.SYNC: "{more}",
    What.DEATH: "worker {a} dies",
    What.BURIED: "sees that worker {a} is gone",
    What.CRASH: "crashes",
    What.DECLARED: "declares n{a} dead",
    What.LOST: "hears that n{a} is lost",
    What.CUT: "the links between n{a} and n{b} are cut, for {more}",
    What.MENDED: "the link from n{a} to n{b} works again",
    What.STOPPED: "{more}",
    What.AGE: "ages, time {a}",
    What.DIFF: "has received {more} from n{a}",
    What.FENCE: "{more}",
}


def pages(page: int, count: int) -> str:
    """Words for a range of pages: ``p3`` or ``p3..7`` (the last one included)."""
    return f"p{page}" if count == 1 else f"p{page}..{page + count - 1}"


def level_name(level: int) -> str:
    """Words for a level that may not be one of `Level`."""
    return Level(level).name if level in (0, 1, 3) else f"level {level}"


def message_text(message: Message) -> str:
    """Return one message in words."""
    flags = "|".join(flag.name or "" for flag in Flag if message.flags & flag)
    where = pages(message.page, message.count)
    tail = f" {flags}" if flags else ""
    return f"{Kind(message.kind).name} r{message.region} {where} #{message.request} of n{message.node}{tail}"


def effect_text(effect: object) -> str:
    """Return one effect in words."""
    match effect:
        case Send(node, message):
            return f"Send to n{node}: {message_text(message)}"
        case SendPages(node, message):
            return f"SendPages to n{node}: {message_text(message)}"
        case Lower(region, page, count, level, token):
            return f"Lower r{region} {pages(page, count)} to {level_name(level)}, token {token}"
        case Fill(region, page, count):
            return f"Fill r{region} {pages(page, count)}"
        case Raise(region, page, count, level, mark):
            at = f", mark p{mark}" if mark != -1 else ""
            return f"Raise r{region} {pages(page, count)} to {level_name(level)}{at}"
        case Wake(waiter, status):
            return f"Wake waiter {waiter}, status {status}"
        case Discard(region, page, count):
            return f"Discard r{region} {pages(page, count)}"
        case LowerRuns(region, runs, level, token):
            return f"LowerRuns r{region} {runs_text(runs)} to {level_name(level)}, token {token}"
        case Twin(region, page, count):
            return f"Twin r{region} {pages(page, count)}"
        case Diff(node, region, runs, request, keep):
            tail = ", keep" if keep else ""
            return f"Diff to n{node}: r{region} {runs_text(runs)} #{request}{tail}"
        case Apply(region, runs):
            return f"Apply r{region} {runs_text(runs)}"
        case Forward(node, message, runs):
            return f"Forward to n{node}: {message_text(message)}, {runs_text(runs)}"
        case Released(ticket, time):
            return f"Released ticket {ticket}, time {time_text(time)}"
        case Acquired(ticket):
            return f"Acquired ticket {ticket}"
    return repr(effect)


def runs_text(runs: Runs) -> str:
    """Words for runs of pages: ``p0..2 p5``."""
    return " ".join(pages(page, count) for page, count in runs.tolist()) or "no page"


def time_text(time: Sequence[int]) -> str:
    """Words for a vector time: ``n0:3 n2:1``."""
    return " ".join(f"n{node}:{number}" for node, number in enumerate(time) if number) or "0"


def _more(more: object) -> object:
    if isinstance(more, Message):
        return message_text(more)
    if isinstance(more, Effect):
        return effect_text(more)
    return more


def render(entry: Entry) -> str:
    """Return one trace entry as a line."""
    time, what, node, a, b, c, more = entry
    text = _TEXT[What(what)].format(a=a, b=b, c=c, more=_more(more))
    where = f"n{node}" if node >= 0 else "--"
    return f"{time / 1000:12.3f} µs  {where:>4}  {text}"
