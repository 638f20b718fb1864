"""One worker that runs a program and says what it cost: ``python -m dsm.bench.tally FILE arguments…``.

    dsm run -n 4 --nodes 2 -m dsm.bench.tally FILE arguments…       # shared
    python -m dsm.bench.tally --plain FILE arguments…               # the same program on plain numpy arrays

Owns the line that each worker prints: JSON of a `Cost`.  The program itself says how long it took, as its
first "… s" on standard output, because only it knows where its work begins; the rest of its output is
dropped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import sys
from typing import Any

import msgspec

import dsm
from dsm.bench.alone import Alone

_SECONDS = re.compile(r"^(\d+\.\d+) s\b", re.MULTILINE)
_TASKS = re.compile(r"tasks of each worker: \[([\d, ]+)\]")


class Cost(msgspec.Struct, frozen=True):
    """What a worker's program cost.

    Attributes
    ----------
    node : int
        Where it ran.
    seconds : float or None
        What the program says; only one worker's does.
    tasks : int
        How many tasks it says that all workers did, if it does: a search does more or fewer by chance.
    messages, bytes : int
        Sent by its node to others, for all its workers together.
    """

    node: int
    seconds: float | None
    tasks: int = 0
    messages: int = 0
    bytes: int = 0


def _placed(home: str | int) -> None:
    """Let every array of the program have this placement."""
    array = dsm.Node.array

    def placed(node: dsm.Node, *arguments: Any, **options: Any) -> Any:
        return array(node, *arguments, **{**options, "home": home})

    setattr(dsm.Node, "array", placed)  # noqa: B010


def main() -> None:
    """Run the program and print its cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--home", default=None)
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.plain:
        dsm.attach = Alone  # type: ignore[assignment]
    elif options.home is not None:
        _placed(int(options.home) if options.home.isdecimal() else options.home)
    sys.argv = [options.program, *options.arguments]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(options.program, run_name="__main__")
    found, done = _SECONDS.search(said.getvalue()), _TASKS.search(said.getvalue())
    seconds = None if found is None else float(found[1])
    tasks = 0 if done is None else sum(map(int, done[1].split(",")))
    cost = Cost(0, seconds, tasks)
    if not options.plain:
        node = dsm.attach()
        node.barrier("tally", parties=node.size)
        numbers = node.statistics()
        cost = Cost(node.node_id, seconds, tasks, numbers.messages_out, numbers.message_bytes_out)
    print(msgspec.json.encode(cost).decode())


if __name__ == "__main__":
    main()
