"""Entry of a manager process: ``python -m dsm.manager``.

Owns the command line, the ready line, and when the process ends: SIGTERM, the launcher's death (guard),
or (``--private``) the last worker's.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import secrets
import signal
import sys

from dsm import log
from dsm.errors import DSMError, LimitError
from dsm.manager.manager import Manager
from dsm.manager.session import lack
from dsm.manager_process import Ready, ready_line, refusal_line
from dsm.parent import wake_at_its_death
from dsm.wire.secret import load_secret

#: A private manager to which nobody attaches ends after so many seconds.
_PRIVATE_WAIT_S = 10.0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dsm.manager", description="The manager of one dsm node.")
    parser.add_argument("--name", help="hexadecimal name of the local socket (default: random)")
    parser.add_argument("--listen", metavar="HOST:PORT", help="accept other nodes here (port 0: any free)")
    parser.add_argument("--join", metavar="HOST:PORT", help="join the cluster of the node there")
    parser.add_argument("--ranks", type=int, default=0, help="number of ranks of the job")
    parser.add_argument("--ready-fd", type=int, help="write one line of JSON here when ready")
    parser.add_argument("--guard-fd", type=int, help="pipe of the launcher: its end ends the job")
    parser.add_argument("--private", action="store_true", help="end with the last worker")
    return parser.parse_args(argv)


class Guard:
    """The launcher's end of a pipe: while it is open, somebody wants this node."""

    def __init__(self, manager: Manager, fd: int) -> None:
        self._manager = manager
        self._fd = fd
        self._text = b""
        self._groups: set[int] = set()
        wake_at_its_death()
        os.set_blocking(fd, False)
        manager.loop.watch(fd, self._read)

    def _read(self, _: int) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        if not data:
            self._manager.loop.forget(self._fd)
            for group in self._groups:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
            self._manager.stop()
            return
        *lines, rest = (self._text + data).split(b"\n")
        self._text = rest
        for line in lines:
            word, _space, number = line.partition(b" ")
            if word == b"group" and number.isdigit() and int(number) > 1:
                self._groups.add(int(number))


def _end_with_workers(manager: Manager) -> None:
    def check() -> None:
        if not manager.sessions.workers:
            manager.stop()

    manager.on_empty = manager.stop
    manager.loop.after(_PRIVATE_WAIT_S, check)


def _say(fd: int | None, line: bytes) -> None:
    """Write the ready line; whoever started us may be gone already."""
    if fd is not None:
        with contextlib.suppress(OSError):
            os.write(fd, line)
        os.close(fd)


def _allow_descriptors() -> None:
    """Allow this process as many descriptors as the system does: each region takes three."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: list[str]) -> int:
    """Run one manager; returns the exit status."""
    options = _arguments(argv)
    try:
        log.configure(os.environ)
    except DSMError as error:
        return _refuse(options.ready_fd, error, 2)
    name = f"@dsm-{options.name or secrets.token_hex(8)}"
    _allow_descriptors()
    try:
        secret = load_secret(os.environ) if options.listen or options.join else None
        manager = Manager(name, secret, options.ranks)
        if options.join and not options.listen:
            options.listen = "127.0.0.1:0"
        manager.start(options.listen, options.join)
    except (DSMError, OSError, MemoryError) as error:
        if not isinstance(error, DSMError):
            error = LimitError(f"this manager cannot start: {lack(error)}")
        return _refuse(options.ready_fd, error, 1)
    if options.guard_fd is not None:
        Guard(manager, options.guard_fd)
    if options.private:
        _end_with_workers(manager)
    _say(options.ready_fd, ready_line(Ready(manager.members.node, name, manager.members.address)))
    # What lives now lives for long: keep it out of collections that would interrupt a fault.
    gc.collect()
    gc.freeze()
    try:
        manager.run()
    except Exception as error:
        _report_internal(manager, error)
        return 1
    return 0


def _refuse(ready_fd: int | None, error: Exception, status: int) -> int:
    """Say why this manager does not serve; returns its exit status."""
    _say(ready_fd, refusal_line(error))
    if ready_fd is None:
        print(f"dsm: {error}", file=sys.stderr)
    return status


def _report_internal(manager: Manager, error: Exception) -> None:
    """Log everything that a report of an error of dsm's own needs; the message has the story of the page."""
    recent = "\n".join(f"  {line}" for line in manager.coherence.engine.recent()) or "  none"
    text = (
        f"internal error, this node ends: {error or type(error).__name__}\n"
        f"last messages of this node, the latest last:\n{recent}\n"
        "This is an error of dsm: please report it with these lines and the output of `dsm report`."
    )
    log.logger.critical("%s", text, exc_info=error)
    if log.to_file():
        first = (str(error) or type(error).__name__).partition("\n")[0]
        print(f"dsm: internal error, this node ends: {first}; the log has the rest", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
