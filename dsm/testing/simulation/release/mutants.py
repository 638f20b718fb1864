"""Deliberate bugs under release consistency, each of which the checkers must find.

Owns the list, as `dsm.testing.simulation.mutants` does for the sequential model.
"""

from __future__ import annotations

from dsm.coherence.engine import Engine
from dsm.coherence.release.acquirer import Acquirer
from dsm.coherence.release.fence import Fence
from dsm.coherence.release.home import Home
from dsm.coherence.release.intervals import Log
from dsm.coherence.release.requester import ReleaseRequester
from dsm.coherence.release.writer import Writer
from dsm.testing.simulation.cluster import Parts, Shape
from dsm.testing.simulation.driver_mutants import SlowPages
from dsm.testing.simulation.mutants import Mutant, give_roles
from dsm.testing.simulation.release import driver_mutants as driver
from dsm.testing.simulation.release import engine_mutants as engine
from dsm.testing.simulation.release import lending_mutants as lending
from dsm.testing.simulation.release.node import TimedNode
from dsm.testing.simulation.release.parts import ReleaseParts
from dsm.testing.simulation.release.plan import Manners
from dsm.testing.simulation.release.shapes import OnePage, ReleaseShape
from dsm.testing.simulation.release.timing import SlowSteps
from dsm.testing.simulation.world import Timing
from dsm.types import Region

RELEASE_MUTANTS: dict[str, Mutant] = {}


def _add(name: str, about: str, parts: Parts) -> None:
    RELEASE_MUTANTS[name] = Mutant(about, parts)


def release_parts(
    node: type[TimedNode] = TimedNode,
    engine: type[Engine] = Engine,
    manners: type[Manners] = Manners,
    timing: type[Timing] = Timing,
    shape: type[Shape] = ReleaseShape,
) -> ReleaseParts:
    """Return parts of a simulation of release consistency."""
    return ReleaseParts(node=node, engine=engine, manners=manners, timing=timing, shape=shape)


def mutated_release(
    *,
    writer: type[Writer] = Writer,
    acquirer: type[Acquirer] = Acquirer,
    requester: type[ReleaseRequester] = ReleaseRequester,
    home: type[Home] = Home,
    fence: type[Fence] = Fence,
    log: type[Log] = Log,
    manners: type[Manners] = Manners,
    timing: type[Timing] = Timing,
) -> ReleaseParts:
    """Return parts whose engines have these roles."""

    class Mutated(Engine):
        def __init__(self, node: int, patience: int = 0) -> None:
            super().__init__(node, patience)
            self.fence.__class__ = fence

        def add_region(self, region: Region) -> None:
            self.fence.log.__class__ = log
            super().add_region(region)
            made = self.regions[region.region]
            give_roles(made, writer=writer, acquirer=acquirer, requester=requester, home=home)

    return release_parts(engine=Mutated, manners=manners, timing=timing)


# -- writing and releasing ------------------------------------------------------------------------------

_add("notice-dropped", "an interval lacks one of its notices", mutated_release(writer=engine.DropsNotice))
_add(
    "early-flush-unnoticed",
    "what was flushed before the release is missing in the notices",
    mutated_release(writer=engine.DropsEarlyFlushed),
)
_add(
    "own-writes-unnoticed",
    "what a home writes itself is missing in the notices",
    mutated_release(writer=engine.DropsOwnWrites),
)
_add(
    "diff-before-revocation",
    "a frame is compared before every worker lost write access",
    mutated_release(writer=engine.DiffsEarly),
)
_add(
    "written-before-twin",
    "write access is granted, then the twin is made",
    mutated_release(writer=engine.RaisesFirst),
)
_add("twin-after-grant", "the manager makes the twin after the grant", release_parts(driver.TwinsLate))
_add(
    "second-snapshot",
    "the new twin is another snapshot than the one that was compared",
    release_parts(driver.LooksTwice, manners=driver.Pinned, timing=SlowSteps),
)
_add("whole-pages-sent", "a diff holds bytes that have not changed", release_parts(driver.SendsWholePages))
_add("words-sent", "a diff holds whole words", release_parts(driver.SendsWords))
_add(
    "words-merged",
    "a home reads, modifies and writes words",
    release_parts(driver.MergesWords, manners=driver.Crowded, timing=SlowSteps, shape=OnePage),
)
_add(
    "notice-before-acknowledgement",
    "an interval closes before the homes have its diffs",
    mutated_release(writer=engine.DoesNotAwaitHomes),
)
_add(
    "round-joined-late",
    "a release shares the round that is under way already",
    mutated_release(fence=engine.JoinsRound, manners=driver.Crowded),
)

# -- acquiring ------------------------------------------------------------------------------------------

_add(
    "acquired-too-early",
    "an acquire is over before the workers have given their copies up",
    mutated_release(acquirer=engine.AcquiresEarly),
)
_add(
    "dirty-thrown-away",
    "a dirty page that a notice names is given up without a diff",
    mutated_release(acquirer=engine.ThrowsDirtyAway),
)
_add("pins-ignored-by-acquire", "an acquire takes pinned pages", mutated_release(acquirer=engine.IgnoresPins))
_add(
    "voided-fetch-installed",
    "what left its home before the write that a notice names is installed",
    mutated_release(requester=engine.InstallsVoided, timing=SlowPages),
)
_add(
    "trimmed-log-believed",
    "the copies stay though the log has forgotten notices",
    mutated_release(log=engine.BelievesTrimmed),
)
_add(
    "time-said-early",
    "a release says that it has seen what is still being acquired",
    mutated_release(fence=engine.AppliesEarly),
)

# -- homes ----------------------------------------------------------------------------------------------

_add(
    "private-untracked",
    "the first fetch of a private page does not make it tracked",
    mutated_release(home=engine.SendsUntracked),
)
_add("reader-forgotten", "a reader is not in the copyset", mutated_release(home=engine.ForgetsReader))
_add(
    "dropped-while-used",
    "a node leaves the copyset of a page that it goes on reading",
    mutated_release(acquirer=engine.DropsUsed),
)
_add(
    "given-while-written",
    "a home moves while its workers write the page",
    mutated_release(home=engine.GivesWhileWritten),
)
_add(
    "copyset-forgotten",
    "a new home does not know who has copies",
    mutated_release(requester=engine.ForgetsCopyset, manners=driver.Rehoming),
)
_add(
    "forwarded-dropped",
    "a diff for a home that has moved on is not passed on",
    mutated_release(home=engine.DropsForwarded, manners=driver.Rehoming),
)
_add(
    "forwarded-acknowledged",
    "a diff that is passed on is acknowledged before the home has it",
    mutated_release(home=engine.AcknowledgesForwarded, manners=driver.Rehoming),
)
_add(
    "stored-at-old-home",
    "a diff is stored at a home that has moved on",
    mutated_release(home=engine.StoresWhatIsNotMine, manners=driver.Rehoming),
)

# -- synchronization ------------------------------------------------------------------------------------

_add("stale-time", "the time of a call is not joined into its object's", release_parts(driver.ForgetsTimes))
_add(
    "time-replaced",
    "the time of an object is that of the last call, not of all",
    release_parts(driver.ForgetsLockTimes),
)
_add(
    "released-unflushed",
    "the release of a lock is sent before `Released`",
    release_parts(driver.ReleasesUnflushed),
)
_add(
    "woken-unacquired",
    "a thread that acquires goes on before `Acquired`",
    release_parts(driver.WakesUnacquired),
)

# -- locks that are lent -------------------------------------------------------------------------------

_add(
    "owed-release-forgotten",
    "a lock that was lent goes back without the release that it owes",
    release_parts(lending.ReturnsUnpaid, manners=lending.Locking),
)
_add(
    "recall-forgotten",
    "a lock that is wanted back stays where it is",
    release_parts(lending.ForgetsRecalls, manners=lending.Locking),
)
_add(
    "crossed-call-forgotten",
    "a node does not know of its calls that cross the lending of their lock",
    release_parts(lending.ForgetsCrossed, manners=lending.Locking),
)
_add(
    "lent-twice",
    "a home grants a lock that is lent to another node",
    release_parts(lending.LendsTwice, manners=lending.Locking),
)
