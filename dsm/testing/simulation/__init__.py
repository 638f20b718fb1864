"""Deterministic simulation of whole clusters: one seed, one clock, every interleaving.

Drives the pure engines of floor 1 over a simulated network and a model of the signal pager (fault
handler, service thread, wanted and applied tables), and checks memory at every step.  Must not know
sockets, threads, clocks or cffi.

==============  =================================================================================
`world`         the clock, the heap of events, the random source, the trace
`trace`         what a trace entry is and how it reads
`truth`         what memory really holds, and the rules that must hold at every instant
`network`       FIFO links with random delays; payloads that take time; links that are cut
`membership`    the coordinator's word about who is dead, and how it spreads
`losses`        which pages may be lost with a node, and what the losses hit
`faults`        crashes, cut links and stopped processes, drawn from the seed
`frames`        frames and wanted table of a region at a node
`node`          the manager that drives the engine
`effects`       what the engine's effects do to a node's memory and links
`worker`        applied table, page locks, the service thread of one worker process
`thread`        a program, and the fault handler as a machine of small steps
`program`       instructions, calls, and programs drawn at random
`cluster`       one simulation from a seed, in rounds, checked at every rest
`litmus`        the litmus tests of memory models over all placements of their threads
`sync`          threads that use locks, barriers and atomic cells, and their checkers
`deaths`        the same while workers die
`mutants`       deliberate bugs, each of which the checkers must find; they are in `engine_mutants`,
                `recovery_mutants` (nodes that die) and `driver_mutants` (manager, shim, network)
`release`       what differs under release consistency: bytes, happens-before, programs, mutants
`bounded`       what differs under bounded staleness: leases, and an oracle with a clock
`script`        scripted traces: engines driven step by step from a text file
`runner`        one seed with its report, or many over several processes
==============  =================================================================================
"""

from dsm.testing.simulation.cluster import Cluster, Parts, Shape
from dsm.testing.simulation.runner import Outcome, report, rows_not_taken, run_many, run_seed
from dsm.testing.simulation.world import Violation, World

__all__ = [
    "Cluster",
    "Outcome",
    "Parts",
    "Shape",
    "Violation",
    "World",
    "report",
    "rows_not_taken",
    "run_many",
    "run_seed",
]
