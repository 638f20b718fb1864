"""Simulation of bounded staleness: leases, the worker that ends them by itself, an oracle with a clock.

The nodes, links, programs and faults are those of the simulator at large; here is what differs.

==============  =================================================================================
`truth`         the oracle: for how long has a value been overwritten, and who has the token
`worker`        leases beside the wanted table, the service thread that ends access, the handler
`node`          copies that are sent from, and received into, frames that are in use
`cluster`       one simulation from a seed, checked at every rest
`mutants`       deliberate bugs, each of which the checkers must find
==============  =================================================================================
"""
