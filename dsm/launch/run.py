"""``dsm run``: start a program on one or several nodes of this machine.

Owns the verb's options and their errors; what happens then is `dsm.launch.job`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dsm import limits, log
from dsm.errors import UsageError
from dsm.launch import job
from dsm.launch.options import add_page_timeout, take_page_timeout

_EPILOG = """\
examples:
  dsm run -n 4 program.py input.dat
  dsm run -n 8 --nodes 2 -m package.module --its-option
  dsm run -n 4 --timeout 60 --on-failure continue program.py

Each worker finds DSM_NODE, DSM_RANK and DSM_SIZE in its environment; ranks are dealt over the nodes in
blocks.  OMP_NUM_THREADS is set to the processors divided by the number of workers, and
PYTHONUNBUFFERED to 1, unless they are set.  Standard input goes to rank 0.

The exit status is 0, that of the first worker that failed (128 + N when signal N killed it), 124 after
--timeout, 130 after Ctrl-C.  Ctrl-C reaches all workers; a second one kills them at once.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsm run",
        usage="dsm run [-n N] [--nodes M] [options] (script.py | -m module) [args ...]",
        description="Start N workers of a Python program that share memory, on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-n", "--ranks", type=int, default=1, metavar="N", help="number of workers (1)")
    parser.add_argument(
        "--nodes",
        type=int,
        default=1,
        metavar="M",
        help="number of nodes, each with a manager of its own (1)",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="end everything after S seconds, status 124"
    )
    add_page_timeout(parser)
    parser.add_argument(
        "--on-failure",
        choices=("stop", "continue"),
        default="stop",
        help="when a worker fails: stop the others within 2 s (default), or let them go on",
    )
    parser.add_argument(
        "--prefix",
        choices=("auto", "always", "never"),
        default="auto",
        help="put the rank before each line of output (auto: on a terminal)",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module, not a file")
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    most = options.nodes * limits.MAX_WORKERS_PER_NODE
    if not 1 <= options.nodes <= limits.MAX_NODES:
        parser.error(f"--nodes {options.nodes}: from 1 to {limits.MAX_NODES} are possible")
    if not 1 <= options.ranks <= most:
        parser.error(
            f"-n {options.ranks}: from 1 to {most} workers are possible "
            f"({limits.MAX_WORKERS_PER_NODE} on each of {options.nodes} nodes)"
        )
    if options.ranks < options.nodes:
        parser.error(
            f"-n {options.ranks} --nodes {options.nodes}: each node needs a worker, give fewer nodes"
        )
    if options.timeout is not None and not 0 < options.timeout < float("inf"):
        parser.error(f"--timeout {options.timeout}: a positive number of seconds is needed")
    take_page_timeout(parser, options)
    if not options.program:
        parser.error("no program: give a script, or -m and a module")
    if not options.module:
        script = options.program[0]
        if not os.path.exists(script):
            parser.error(f"cannot find the program {script} (in {os.getcwd()})")
        if os.path.isdir(script) and not os.path.exists(os.path.join(script, "__main__.py")):
            parser.error(f"{script} is a directory without a __main__.py")


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.program[:1] == ["--"]:
        del options.program[0]
    _check(parser, options)
    try:
        log.configure(os.environ)
    except UsageError as error:
        parser.error(str(error))
    log.identify("run")
    return job.run(
        job.JobOptions(
            command=[sys.executable, *(["-m"] if options.module else []), *options.program],
            ranks=options.ranks,
            nodes=options.nodes,
            timeout_s=options.timeout,
            on_failure=options.on_failure,
            prefix=options.prefix,
        )
    )
