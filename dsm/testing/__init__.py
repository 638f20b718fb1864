"""Tools to test programs that use dsm: real clusters on this machine, chaos, and the protocol's simulator.

`dsm.testing.simulation` drives the protocol alone, `dsm.testing.chaos` kills and stops parts of real
jobs; both are imported by themselves.
"""

from __future__ import annotations

from dsm.testing.cluster import Cluster, Worker, WorkerFailed
from dsm.testing.network import Network
from dsm.testing.starting import ForkServer

__all__ = ["Cluster", "ForkServer", "Network", "Worker", "WorkerFailed"]
