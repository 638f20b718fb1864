"""One run of a program: its managers and workers from the first process to the last.

Owns the decisions: which failure was first, who is told what and when, which status comes out.  The
promise is that nothing remains: `run` returns when every process that descends from this one is gone.  When
we are killed, the kernel kills the workers and wakes the managers (`dsm.parent`), which kill the groups of
the workers (`dsm.manager_process`) and end.

How a run ends, `STOP_S` + `ACCUSED_S` being less than two seconds:

=====================  ==============================================  ==============================
cause                  workers get                                     status
=====================  ==============================================  ==============================
all workers ended      —                                               0, or the first failed one's
a worker failed        SIGTERM, SIGKILL after `STOP_S`                 that worker's
a manager ended        the same                                        that manager's, at least 1
--timeout              the same                                        124
SIGTERM, HUP, QUIT     that signal, SIGKILL after `STOP_S`             128 + signal
SIGINT                 SIGINT, after `INTERRUPT_S` as if one failed    130, or 0 if all ended well
a second of those      SIGKILL                                         the first one's
the output's reader    SIGTERM, SIGKILL after `STOP_S`                 141
has gone
=====================  ==============================================  ==============================
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dsm import log
from dsm.launch import processes, verdict
from dsm.launch.cluster import Cluster
from dsm.launch.loop import Loop, Signals
from dsm.launch.managers import Manager
from dsm.launch.output import Cursor, Relay, Sink
from dsm.launch.ranks import deal
from dsm.launch.terminal import Keyboard
from dsm.launch.workers import Worker, worker_environment
from dsm.manager_process import manager_command

#: Seconds between asking a worker to end and killing it.
STOP_S = 1.0
#: Seconds that workers have to end by themselves after Ctrl-C.
INTERRUPT_S = 5.0
#: Seconds in which the process that a peer error accuses must have failed, to be the origin.
ACCUSED_S = 0.5
#: Seconds in which the managers must be ready.
READY_S = 30.0
#: Seconds between two looks at processes that are nobody's child we know.
_SWEEP_S = 0.01

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_FORWARDED = (signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2)
_HANDLED = (signal.SIGINT, signal.SIGTSTP, signal.SIGCONT, *_ENDING, *_FORWARDED)


@dataclass(frozen=True)
class JobOptions:
    """What to run; see ``dsm run --help``."""

    #: A worker's command line.
    command: Sequence[str]
    ranks: int
    nodes: int = 1
    timeout_s: float | None = None
    #: ``"stop"``: when one worker fails, all end.  ``"continue"``: the others go on.
    on_failure: str = "stop"
    #: ``"auto"`` (on a terminal), ``"always"`` or ``"never"``: ranks before lines.
    prefix: str = "auto"
    manager_command: Sequence[str] = field(default_factory=lambda: manager_command())


class Job:
    """One run; used once."""

    def __init__(self, options: JobOptions) -> None:
        self._options = options
        self._loop = Loop()
        cursors = [Cursor(), Cursor()]
        if os.isatty(1) and os.isatty(2):
            cursors[1] = cursors[0]
        self._stdout, self._stderr = (
            Sink(self._loop, fd, cursor, self._output_broken)
            for fd, cursor in zip((1, 2), cursors, strict=True)
        )
        self._signals = Signals(self._loop, _HANDLED, self._signalled)
        log.redirect(lambda line: self._stderr.write(self, line.encode("utf-8", "backslashreplace")))
        command = [*options.manager_command, "--ranks", str(options.ranks)]
        self._cluster = Cluster(self._loop, self._stderr, command, options.nodes, self._manager_failed)
        self._workers: list[Worker] = []
        self._errors: dict[int, Relay] = {}  #: standard error of each rank
        self._relays: list[Relay] = []
        self._keyboard: Keyboard | None = None
        #: The run is being ended: failures are consequences from now on.
        self._ending = False
        self._killed = False
        self._interrupts = 0
        #: Status that the cause of the end asks for; None: the origin's, or 0.
        self._status: int | None = None
        self._origin: Worker | Manager | None = None
        self._accuser: Worker | None = None

    # ---- from start to end

    def run(self) -> int:
        """Run the program; return its exit status when nothing of it is left."""
        processes.become_subreaper(True)
        with self._signals:
            try:
                if self._options.timeout_s is not None:
                    self._loop.call_after(self._options.timeout_s, self._timed_out)
                self._start_managers()
                self._start_workers()
                self._loop.run_until(self._workers_gone)
            finally:
                self._end()
            self._flush()
            self._report()
            self._flush()
        self._loop.close()
        processes.become_subreaper(False)
        return self._exit_status()

    def _start_managers(self) -> None:
        for start in (self._cluster.start_first, self._cluster.start_others):
            if not self._ending:
                start()
                self._wait_ready()

    def _wait_ready(self) -> None:
        if not self._loop.run_until(lambda: self._ending or self._cluster.ready, READY_S):
            late = [str(n) for n, manager in enumerate(self._cluster) if not manager.socket]
            self._fail(f"the manager of node {', '.join(late)} was not ready after {READY_S:.0f} s")

    def _manager_failed(self, manager: Manager | None, message: str) -> None:
        if self._ending:
            return
        if manager is None or not manager.socket:
            self._fail(message)
            return
        self._say(message)
        self._origin = self._origin or manager
        if self._options.on_failure == "stop":
            self._stop(signal.SIGTERM)

    def _start_workers(self) -> None:
        # Before a worker can start anything, every manager knows of its group.
        before_exec = processes.die_with_parent(self._cluster.guard)
        blocks = deal(self._options.ranks, self._options.nodes)
        for manager, block in zip(self._cluster, blocks, strict=False):
            for rank in block:
                if self._ending:
                    return
                try:
                    self._start_worker(rank, manager, before_exec)
                except OSError as error:
                    self._fail(f"cannot start rank {rank}: {error.strerror}")

    def _start_worker(self, rank: int, manager: Manager, before_exec: Callable[[], None]) -> None:
        options = self._options
        environment = worker_environment(manager.socket, rank, options.ranks)
        stdin, typed = self._input() if rank == 0 else (subprocess.DEVNULL, -1)
        try:
            worker = Worker(rank, manager.node, options.command, environment, stdin, before_exec)
        finally:
            if typed >= 0:
                os.close(stdin)
        log.logger.info("rank %d is process %d on node %d", rank, worker.pid, manager.node)
        if typed >= 0:
            self._keyboard = Keyboard(self._loop, 0, typed)
        self._workers.append(worker)
        out, err = (
            Relay(self._loop, fd, sink, self._prefix(rank, sink))
            for fd, sink in ((worker.stdout_fd, self._stdout), (worker.stderr_fd, self._stderr))
        )
        self._relays += [out, err]
        self._errors[rank] = err
        self._loop.add(worker.pidfd, lambda: self._worker_ended(worker, (out, err)))

    def _input(self) -> tuple[int, int]:
        """Return rank 0's standard input, and the end of it that we write, or -1."""
        try:
            found = os.fstat(0)
        except OSError:
            return subprocess.DEVNULL, -1
        if stat.S_ISCHR(found.st_mode) and os.isatty(0):
            return os.pipe2(os.O_CLOEXEC)
        return 0, -1

    def _prefix(self, rank: int, sink: Sink) -> bytes:
        wanted = self._options.prefix
        if wanted == "always" or (wanted == "auto" and sink.is_terminal):
            return b"[%*d] " % (len(str(self._options.ranks - 1)), rank)
        return b""

    # ---- what happens on the way

    def _workers_gone(self) -> bool:
        return all(worker.status is not None for worker in self._workers)

    def _worker_ended(self, worker: Worker, relays: tuple[Relay, Relay]) -> None:
        if not worker.look():
            return
        log.logger.info("%s ended with %s", self._describe(worker), worker.describe_end())
        self._loop.remove(worker.pidfd)
        for relay in relays:
            relay.drain()
        if worker.status == 0 or self._ending or self._interrupts:
            return
        if self._options.on_failure == "continue" and self._options.ranks > 1:
            self._say(f"{self._describe(worker)} failed with {worker.describe_end()}; the others go on")
        if not verdict.accuses_a_peer(bytes(self._errors[worker.rank].tail)):
            self._blame(worker)
        elif self._accuser is None and self._origin is None:
            self._accuser = worker
            self._loop.call_after(ACCUSED_S, lambda: self._blame(worker))

    def _blame(self, worker: Worker) -> None:
        """`worker` is the origin, unless that is known already."""
        if self._origin is None and not self._ending and not self._interrupts:
            self._origin = worker
            if self._options.on_failure == "stop":
                self._stop(signal.SIGTERM)

    def _timed_out(self) -> None:
        if not self._ending and not (self._workers and self._workers_gone()):
            self._say(f"not done after {self._options.timeout_s:g} s (--timeout): stopped")
            self._status = 124
            self._stop(signal.SIGTERM)

    def _output_broken(self, error: OSError) -> None:
        if self._ending:
            return
        if error.errno != errno.EPIPE:
            self._fail(f"cannot write what the program prints: {error.strerror}; all is stopped")
            return
        self._status = 128 + signal.SIGPIPE
        self._stop(signal.SIGTERM)

    def _fail(self, message: str) -> None:
        self._say(message)
        self._status = 1
        self._stop(signal.SIGTERM)

    # ---- signals

    def _signalled(self, number: int) -> None:
        if number == signal.SIGTSTP:
            self._suspend()
        elif number == signal.SIGCONT:
            self._resume()
        elif number in _FORWARDED:
            self._tell(number)
        elif self._interrupts:
            self._kill()
        else:
            self._interrupts = 1
            if self._status is None and self._origin is None:
                self._status = 128 + number
            if number == signal.SIGINT and not self._ending and self._workers:
                self._tell(number)
                self._loop.call_after(INTERRUPT_S, lambda: self._stop(signal.SIGTERM))
            else:
                self._stop(number)

    def _suspend(self) -> None:
        """Stop workers, managers (a running one would time out on a stopped worker), ourselves.

        Workers get SIGSTOP: the kernel ignores SIGTSTP in a session without a terminal.
        """
        self._tell(signal.SIGSTOP)
        self._cluster.tell(signal.SIGSTOP)
        self._signals.stop_self()
        self._resume()

    def _resume(self) -> None:
        self._cluster.tell(signal.SIGCONT)
        self._tell(signal.SIGCONT)
        if self._keyboard:
            self._keyboard.resume()

    def _tell(self, number: int) -> None:
        """Signal every worker's group."""
        for worker in self._workers:
            worker.signal_group(number)

    def _stop(self, number: int) -> None:
        """End all workers: they are asked once, and killed when the time is over."""
        if not self._ending:
            self._ending = True
            self._tell(number)
            self._tell(signal.SIGCONT)  # a stopped one could not end
            self._loop.call_after(STOP_S, lambda: self._tell(signal.SIGKILL))

    def _kill(self) -> None:
        self._ending = self._killed = True
        self._tell(signal.SIGKILL)
        self._cluster.tell(signal.SIGKILL)

    # ---- the end

    def _end(self) -> None:
        """Return when every process of the run is gone; the workers' leaders mostly are."""
        self._blame_accuser()
        if not self._workers_gone():  # an exception of our own
            self._stop(signal.SIGTERM)
        self._ending = True
        self._loop.run_until(self._workers_gone)
        self._sweep()
        if self._keyboard:
            self._keyboard.close()
        self._cluster.end()
        for relay in self._relays:
            relay.drain()
            relay.close()
        for worker in self._workers:
            self._loop.remove(worker.pidfd)
            worker.reap()
        processes.reap_strangers()

    def _blame_accuser(self) -> None:
        if self._accuser is not None and self._origin is None and not self._interrupts:
            self._origin = self._accuser

    def _sweep(self) -> None:
        """End what workers left behind: children, also those that went into sessions of their own."""
        own = self._cluster.pids

        def gone(number: int, told: set[int]) -> bool:
            left = set(processes.descendants(but_not=own))
            for pid in left - told:
                processes.signal_process(pid, number)
            told |= left
            if left:
                self._loop.call_after(_SWEEP_S, lambda: None)  # look again then
            return not left

        asked: set[int] = set()
        killed: set[int] = set()
        if self._killed or not self._loop.run_until(lambda: gone(signal.SIGTERM, asked), STOP_S):
            self._loop.run_until(lambda: gone(signal.SIGKILL, killed), STOP_S)

    def _report(self) -> None:
        """Print what the origin said last, as the very last thing."""
        worker = self._origin
        if not isinstance(worker, Worker) or (self._options.ranks == 1 and not worker.killed_by):
            return
        words = verdict.last_words(bytes(self._errors[worker.rank].tail))
        text = f"dsm run: {self._describe(worker)} failed first, with {worker.describe_end()}"
        if self._options.on_failure == "stop" and self._options.ranks > 1:
            text += "; the others were stopped"
        text += f". Its last words:\n{words}\n" if words else ". It left no message.\n"
        self._stderr.write(self, text.encode("utf-8", "backslashreplace"))

    def _flush(self) -> None:
        """Wait until all output is written, however slow its reader; a second signal ends that."""
        self._loop.run_until(lambda: (self._stdout.empty and self._stderr.empty) or self._killed)

    def _exit_status(self) -> int:
        if self._interrupts and self._status == 130 and all(worker.status == 0 for worker in self._workers):
            return 0 if self._workers else 130
        if self._status is not None:
            return self._status
        if self._origin is None:
            return 0
        return self._origin.status or 1

    def _describe(self, worker: Worker) -> str:
        return f"rank {worker.rank}" + (f" (node {worker.node})" if self._options.nodes > 1 else "")

    def _say(self, message: str) -> None:
        self._stderr.write(self, f"dsm run: {message}\n".encode("utf-8", "backslashreplace"))


def run(options: JobOptions) -> int:
    """Run a program as `options` say; return its exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    return Job(options).run()
