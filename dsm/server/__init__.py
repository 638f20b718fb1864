"""The lease server: memory of a node, leased over TCP to whoever asks.

=================  ==================================================================================
`server`           `Server`: where it listens, its thread
`service`          the loop: connections, turns, time
`acceptor`         taking clients in
`connection`       what one client asks
`channel`          its socket: bytes in, answers out, turns
`upload`           a SET on its way in
`book`             pure: which memory is leased until when, and what must be cleaned
`cleaner`          zeroing what leases leave
`share`            memory that connections take in turn, when there is not enough for all
`stragglers`       who holds up others, and is closed
`cluster`          leases of the cluster for clients, and of clients for the cluster
`memory`           the region
`command`          ``dsm serve``
=================  ==================================================================================
"""

from dsm.server.server import Server

__all__ = ["Server"]
