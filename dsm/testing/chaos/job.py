"""One chaos job: its events happen, its waits are watched, its journals are judged.

Owns the time line.  Whatever happens, `run` returns within a bounded time, with nothing of the job left.
"""

from __future__ import annotations

import heapq
import itertools
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from dsm.errors import DSMError
from dsm.testing.chaos import journal, remains, timing
from dsm.testing.chaos.journal import Kind, Outcome
from dsm.testing.chaos.plan import Action, Event, JobPlan
from dsm.testing.chaos.processes import Child, Processes
from dsm.testing.chaos.timing import Disturbance
from dsm.testing.chaos.verdict import Evidence, judge, summary
from dsm.testing.network import Network

_TICK_S = 0.02
#: Seconds between two looks at what everybody waits for.
_WATCH_S = 0.25
#: Seconds for managers and workers to be ready, and for all workers to end.
_READY_S = 60.0
_END_S = 30.0

Say = Callable[[str], None]


class Stuck(Exception):
    """Something did not end in time."""


class Job:
    """One job; used once.

    Parameters
    ----------
    plan
        What happens.
    say
        Takes a line for each event.
    number
        How these lines call the job.
    gone_s
        Seconds within which everything must be gone at the end.
    """

    def __init__(self, plan: JobPlan, say: Say, number: int = 0, gone_s: float = 5.0) -> None:
        self._plan = plan
        self._say = say
        self._number = number
        self._gone_s = gone_s
        self._network: Network | None = None
        self._processes: Processes
        self._steps: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._start = 0.0
        self._watched = 0.0
        #: Disturbances under way by their event, and all of them.
        self._under_way: dict[Event, Disturbance] = {}
        self._evidence = Evidence(plan)

    @property
    def summary(self) -> str:
        """One line of figures."""
        return summary(self._evidence)

    # -- from start to end -------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Carry out the plan; return what went wrong, worst first."""
        folder = Path(tempfile.mkdtemp(prefix="dsm-chaos-"))
        mark = uuid.uuid4().hex
        before = remains.shared_files()
        problems: list[str] = []
        try:
            try:
                if self._plan.networked:
                    self._network = Network(self._plan.nodes)
                self._processes = Processes(self._plan, folder, mark, self._network)
                try:
                    self._carry_out()
                except (Stuck, DSMError) as error:
                    problems.append(f"{error}\n{self._processes.stacks()}")
                finally:
                    self._calm()
                    self._collect()
                    left = self._end(mark)
            finally:
                if self._network is not None:
                    self._network.close()
            problems += judge(self._evidence) + left + self._remains(folder, mark, before)
        finally:
            if not problems:
                shutil.rmtree(folder)
        if problems:
            problems.append(f"journals and output are kept in {folder}")
        return problems

    def _carry_out(self) -> None:
        self._processes.start()
        self._wait(self._all_attached, _READY_S, "workers attach")
        self._start = time.monotonic()
        for event in self._plan.events:
            self._at(event.at_s, lambda event=event: self._happen(event))  # type: ignore[misc]
        for at in self._plan.barriers_s:
            self._at(at, self._meet)
        while self._steps:
            self._tick()
        self._wait(lambda: self._start + self._plan.events[-1].at_s + 0.5 < time.monotonic(), 60.0, "the end")
        for rank in range(len(self._processes.workers)):
            self._processes.tell(rank, "stop")
        self._wait(
            lambda: all(child.status is not None for child in self._processes.workers), _END_S, "workers end"
        )

    def _at(self, at_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._steps, (self._start + at_s, next(self._order), do))

    def _tick(self) -> None:
        now = time.monotonic()
        while self._steps and self._steps[0][0] <= now:
            heapq.heappop(self._steps)[2]()
        self._note_ends()
        if now > self._watched + _WATCH_S:
            self._watched = now
            self._watch()
        pause = min(_TICK_S, self._steps[0][0] - time.monotonic()) if self._steps else _TICK_S
        time.sleep(max(0.0, pause))

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise Stuck(f"not within {timeout_s:g} s: {what}")
            self._tick()

    def _all_attached(self) -> bool:
        for rank, child in enumerate(self._processes.workers):
            if child.status is not None:
                raise Stuck(f"{child.name} ended with {child.describe_end()} before any event")
            newest = journal.last(self._processes.journal(rank))
            if newest is None or (newest.kind == Kind.ATTACH and newest.outcome == Outcome.BEGIN):
                return False
        return True

    # -- events ------------------------------------------------------------------------------------------

    def _happen(self, event: Event) -> None:
        done = {
            Action.KILL_WORKER: self._kill, Action.KILL_MANAGER: self._kill, Action.STOP_WORKER: self._stop,
            Action.STOP_MANAGER: self._stop, Action.CUT: self._cut,
        }[event.action](event)  # fmt: skip
        self._tell_of(event, "" if done else ": gone already")

    def _tell_of(self, event: Event, more: str = "") -> None:
        at = time.monotonic() - self._start
        self._say(f"job {self._number:3}  {at:6.2f} s  {event}{more}")

    def _target(self, event: Event) -> Child:
        processes = self._processes
        return processes.managers[event.node] if event.rank < 0 else processes.workers[event.rank]

    def _kill(self, event: Event) -> bool:
        now = time.monotonic_ns()
        if not self._target(event).signal(signal.SIGKILL):
            return False
        if event.rank < 0:
            self._evidence.killed_nodes[event.node] = now
        else:
            self._evidence.killed_workers[event.rank] = now
        return True

    def _stop(self, event: Event) -> bool:
        begin = time.monotonic_ns()
        if not self._target(event).signal(signal.SIGSTOP):
            return False
        self._begin(event, begin, (event.node,))
        return True

    def _cut(self, event: Event) -> bool:
        managers = self._processes.managers
        if managers[event.node].status is not None or managers[event.other].status is not None:
            return False
        assert self._network is not None
        begin = time.monotonic_ns()
        self._network.cut(event.node, event.other)
        self._begin(event, begin, (event.node, event.other))
        return True

    def _begin(self, event: Event, begin_ns: int, nodes: tuple[int, ...]) -> None:
        self._under_way[event] = Disturbance(begin_ns, 1 << 62, nodes, event.rank)
        self._at(event.until_s, lambda: self._over(event))

    def _over(self, event: Event) -> None:
        """Take back a stop or a cut."""
        disturbance = self._under_way.pop(event, None)
        if disturbance is None:
            return
        if disturbance.is_cut:
            assert self._network is not None
            self._network.heal()
        else:
            self._target(event).signal(signal.SIGCONT)
        self._evidence.disturbances.append(
            Disturbance(disturbance.begin_ns, time.monotonic_ns(), disturbance.nodes, disturbance.rank)
        )

    def _calm(self) -> None:
        for event in list(self._under_way):
            self._over(event)

    def _meet(self) -> None:
        for rank in range(len(self._processes.workers)):
            self._processes.tell(rank, "barrier")

    # -- watching ----------------------------------------------------------------------------------------

    def _note_ends(self) -> None:
        for node, manager in enumerate(self._processes.managers):
            if manager.status is not None:
                self._evidence.ended_nodes.setdefault(node, manager.ended_ns)
        for rank, worker in enumerate(self._processes.workers):
            if worker.status is not None:
                self._evidence.ended_workers.setdefault(rank, (worker.ended_ns, worker.status))

    def _watch(self) -> None:
        """Raise `Stuck` when somebody waits for longer than it may."""
        disturbances = [*self._evidence.disturbances, *self._under_way.values()]
        now = time.monotonic_ns()
        for rank, worker in enumerate(self._processes.workers):
            newest = journal.last(self._processes.journal(rank))
            if worker.status is not None or newest is None or newest.outcome != Outcome.BEGIN:
                continue
            words = (newest.a, newest.b, newest.c)
            others = timing.others_s(disturbances, newest.time_ns, now)
            took = (now - newest.time_ns) / 1e9
            took -= timing.own_s(self._plan, rank, disturbances, newest.time_ns, now)
            # The verdict judges by the bound itself; here is only seen to it that a job ends.
            if took > timing.bound_s(newest.kind, words, others) + 2 * timing.MARGIN_S + others:
                raise Stuck(
                    f"worker {rank} has been in {Kind(newest.kind).name} {newest.which} for {took:.1f} s"
                )

    # -- the end -----------------------------------------------------------------------------------------

    def _collect(self) -> None:
        self._note_ends()
        self._evidence.journals = [
            journal.read(self._processes.journal(rank)) for rank in range(len(self._processes.workers))
        ]

    def _end(self, mark: str) -> list[str]:
        """End the managers, then whatever is left; return what should have gone by itself."""
        problems = []
        processes = self._processes
        processes.ask_managers_to_end()
        deadline = time.monotonic() + self._gone_s
        while any(child.status is None for child in processes.all) and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        problems += [
            f"{child.name} had to be killed at the end" for child in processes.all if child.status is None
        ]
        known = {child.pid for child in processes.all}
        problems += [
            f"process {pid} remains: {remains.command_line(pid)}"
            for pid in remains.marked(mark)
            if pid not in known
        ]
        processes.end()
        for node, manager in enumerate(processes.managers):
            if "internal error" in manager.said or "Traceback" in manager.said:
                problems.append(f"the manager of node {node} failed:\n{manager.said[-4000:]}")
        for child in processes.workers:
            if "Traceback" in child.said:
                problems.append(f"{child.name} failed:\n{child.said[-4000:]}")
        return problems

    def _remains(self, folder: Path, mark: str, before: set[str]) -> list[str]:
        def look() -> list[str]:
            found = [f"process {pid} remains: {remains.command_line(pid)}" for pid in remains.marked(mark)]
            found += [f"file /dev/shm/{name} remains" for name in remains.shared_files() - before]
            found += [f"file {path} remains" for path in (folder / "tmp").iterdir()]
            if self._network is None:
                found += [f"port {port} is still open" for port in remains.listening(self._processes.ports)]
                found += [f"socket {name} remains" for name in remains.sockets(set(self._processes.sockets))]
            else:
                found += [f"network namespace {name} remains" for name in self._network.remains()]
            return found

        deadline = time.monotonic() + self._gone_s
        while (found := look()) and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        return found
