"""What `node.statistics()` returns: counters of this node, frozen at one moment.

Owns the names that users see.  A manager may count more than is named here; what is unknown is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Statistics:
    """Counters of one node since its manager started, all its workers together.

    Attributes
    ----------
    faults_read, faults_write
        Accesses that found a page absent, or present for reading only.
    faults_local
        Those of them that were answered on this node without any message.
    pages_in, pages_out
        Pages received from and sent to other nodes.
    bytes_in, bytes_out
        Bytes of those pages.
    messages_in, messages_out
        Messages of every kind received from and sent to other nodes: about pages, synchronization, names.
    message_bytes_in, message_bytes_out
        All bytes of these messages, pages included.
    invalidations
        Pages given up because another node wrote them.
    mprotects
        Calls by which workers changed what their processes may access.
    merges
        Memory maps given back because a process came near vm.max_map_count; each costs faults later.
    poisoned
        Faults that could not be served and ended in an error.
    lease_late_ns
        Of ``consistency="bounded"``: by how much, in all, access was taken away later than promised,
        because the machine gave dsm's thread no processor; 0: nothing older than the bound was read.
    latency_ns_log2
        Faults by latency: entry k counts those that took 2^k to 2^(k+1) nanoseconds.
    """

    faults_read: int = 0
    faults_write: int = 0
    faults_local: int = 0
    pages_in: int = 0
    pages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    message_bytes_in: int = 0
    message_bytes_out: int = 0
    invalidations: int = 0
    mprotects: int = 0
    merges: int = 0
    poisoned: int = 0
    lease_late_ns: int = 0
    latency_ns_log2: tuple[int, ...] = ()

    @property
    def faults(self) -> int:
        """Faults of both kinds."""
        return self.faults_read + self.faults_write

    def latency_ns(self, quantile: float) -> int:
        """Return a bound that this part of the faults did not exceed, in nanoseconds (0: no faults).

        Parameters
        ----------
        quantile
            From 0 to 1; 0.5 is the median.
        """
        rank, seen = quantile * sum(self.latency_ns_log2), 0
        for power, count in enumerate(self.latency_ns_log2):
            seen += count
            if count and seen >= rank:
                return int(2 << power)
        return 0


_NAMES = {field.name for field in fields(Statistics)} - {"latency_ns_log2"}


def statistics_of(values: Mapping[str, int], latency_ns_log2: Sequence[int]) -> Statistics:
    """Return what a manager counted, without the counters that this version does not name."""
    known = {name: value for name, value in values.items() if name in _NAMES}
    return Statistics(**known, latency_ns_log2=tuple(latency_ns_log2))
