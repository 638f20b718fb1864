"""Tools to test programs that use dsm: real clusters on this machine, and the protocol's simulator.

`dsm.testing.simulation` drives the protocol alone and is imported by itself.
"""

from __future__ import annotations

from dsm.testing.cluster import Cluster, Worker, WorkerFailed

__all__ = ["Cluster", "Worker", "WorkerFailed"]
