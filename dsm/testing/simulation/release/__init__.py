"""Simulation of release consistency: bytes, twins and diffs, real happens-before, and programs for it.

The nodes, workers, links and faults are those of the simulator at large; here is what differs.

==============  =================================================================================
`clocks`        real happens-before of threads, as the homes of locks and barriers granted it
`truth`         the oracle: what each byte may hold
`frames`        frames that are written while they are sent, and their twins
`diffs`         changed bytes on their way
`effects`       what the engine's effects of release consistency do to memory and links
`calls`         which operations of locks, barriers and cells release, and which acquire
`node`          calls wait for `Released`, replies for `Acquired`; times and notices travel with them
`thread`        words of several bytes; a thread's place in happens-before
`plan`          which byte belongs to whom, so that programs have no data races (but where they are to)
`program`       programs that follow a plan
`rest`          what must hold when nothing is under way
`shapes`        how large clusters are
`timing`        how long things take
`cluster`       one simulation from a seed
`parts`         the classes that a simulation is made of
`restless`      a writer whose homes move at every chance
`losses`        which pages may be lost with a node
`deaths`        what must hold of locks and barriers when threads die
`lending`       locks that are lent to the node that uses them
`litmus`        litmus tests with and without synchronization
`script`        scripted traces
`mutants`       deliberate bugs; they are in `engine_mutants`, `driver_mutants`, `lending_mutants`
==============  =================================================================================
"""
