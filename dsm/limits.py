"""Limits of the system: each has a name, a unit in the name, and a relation to the others.

Owns every constant that bounds memory, time or count.  The asserted relations at the end run at
import; nothing here depends on the machine.
"""

from __future__ import annotations

#: Bytes of the smallest coherence unit, and of the operating system's page.
OS_PAGE_BYTES = 4096
#: Largest coherence unit a region may choose (4 KiB · 2^k).
MAX_PAGE_BYTES = 2 * 1024 * 1024
#: Nodes of a cluster: one bit each in a page's copyset.
MAX_NODES = 64
#: Workers that may be attached to one node at the same time.
MAX_WORKERS_PER_NODE = 256
#: Threads of one worker that may wait in faults and calls at the same time.
SLOTS_PER_WORKER = 256
#: Bytes of the longest name of a region, lock, barrier or atomic (UTF-8).
MAX_NAME_BYTES = 255

#: Addresses handed to regions: clear of PIE, V8, ZGC and the sanitizers' shadows.
ADDRESS_LOW = 0x5800_0000_0000
ADDRESS_HIGH = 0x6000_0000_0000
#: Regions start on a multiple of this (a huge page), with at least one free such unit between two.
ADDRESS_ALIGNMENT = 2 * 1024 * 1024
#: Bytes of one region: each cluster hands out addresses from a random place in the lower half.
MAX_REGION_BYTES = (ADDRESS_HIGH - ADDRESS_LOW) // 2 - 2 * ADDRESS_ALIGNMENT

#: Bytes of a block of pages with one arbiter: requests never cross a block.
DIRECTORY_BLOCK_BYTES = 1024 * 1024
#: Read-ahead windows, in bytes: the first one opened and the largest.
READ_AHEAD_MIN_BYTES = 16 * 1024
READ_AHEAD_MAX_BYTES = 1024 * 1024
#: Largest window that a run of write faults opens: it takes pages away from others.
WRITE_AHEAD_MAX_BYTES = 256 * 1024
#: Bytes that a prefetch or pin asks for ahead of what it has.
BULK_WINDOW_BYTES = 8 * 1024 * 1024
#: Bytes of the block of pages whose home the first that touches one of them gets.
CLAIM_BYTES = 256 * 1024
#: Write notices that a node remembers: intervals of each node, and runs of pages of all together.
LOG_INTERVALS = 1024
LOG_RUNS = 256 * 1024
#: Releases of a node in a row in which it alone changed a page, before it asks for the page's home.
SOLE_WRITER_RELEASES = 3
#: Bytes of pages in one data message.
MAX_DATA_BYTES = MAX_PAGE_BYTES
#: Bytes of changed pages in one message of a release.
MAX_DIFF_BYTES = 4 * 1024 * 1024
#: Bytes of the write notices that go with one message of a synchronization object.
MAX_NOTICE_BYTES = 4 * 1024 * 1024
#: Bytes of a control message on a node's local socket.
MAX_CONTROL_BYTES = 128 * 1024
#: Rows of page tables that one answer to a question about pages has, of all nodes together.
MAX_ROWS = 32 * 1024
#: Bytes of the payload of a request to join: an address.
MAX_JOIN_BYTES = 1024
#: Bytes of the payload of a metadata message between nodes.
MAX_METADATA_BYTES = 16 * 1024 * 1024

#: Δ of Mirage: a page that a thread waited for is kept this long after its grant was applied.
HOLD_NS = 50_000
#: The longest that an instruction keeps a page while it waits for another one.
HOLD_WAIT_MAX_NS = 1_000_000_000
#: How long a grant may stay unapplied before a revocation stops waiting for it (a stopped worker).
UNAPPLIED_MAX_NS = 50_000_000

#: Of `bounded`: the least and the most that a value may be old.
MIN_STALENESS_NS = 5_000_000
MAX_STALENESS_NS = 3_600 * 1_000_000_000
#: This part of it remains for workers to take access away in; the lease is what comes before.
LEASE_GUARD_PART = 8
#: A request for a copy that is not answered is sent again after this time: its owner may have died.
READ_AGAIN_NS = 250_000_000

#: How long a side polls, yielding its processor, before it sleeps.
SPIN_NS = 100_000
#: Memory maps left to the program when the signal pager merges its own.
VMA_RESERVE = 4096

#: Seconds a peer may take for the handshake.
HANDSHAKE_TIMEOUT_S = 5.0
#: Seconds after which a peer whose host does not answer any more is lost.
PEER_SILENCE_S = 15
#: Seconds that a thread waits for a page before it gets `PageTimeoutError`, and how often that is looked at
#: meanwhile.  Longer than `PEER_SILENCE_S`: a host that is gone is reported as that.
PAGE_TIMEOUT_S = 30.0
PAGE_TIMEOUT_PARTS = 8
#: Half-open (not yet authenticated) connections a manager keeps.
MAX_HALF_OPEN = 128
#: Connections that are authenticated but belong to no member yet: nodes that wait for their turn to join.
MAX_JOINING = MAX_NODES
#: Seconds a node may take from its proof to its request to join, and from its welcome to being ready.
JOIN_TIMEOUT_S = 10.0
#: Seconds a node waits to be taken in: others before it may hang.
JOIN_WAIT_S = 3 * JOIN_TIMEOUT_S
#: Memory that a manager spends on messages that one peer does not read; frames are sent from where they lie.
MAX_UNREAD_BYTES = 64 * 1024 * 1024
#: Seconds that who releases a lease waits for workers to lose its memory: stopped ones confirm nothing.
LEASE_RELEASE_WAIT_S = 1.0
#: A lease server that has not asked for its next demand for so many seconds is not waited for.
DEMAND_WAIT_S = 10.0
#: Connections on a node's local socket whose process has not attached.
MAX_UNATTACHED = 256
#: Requests of one worker on the local socket that are read before some are answered.
MAX_UNANSWERED = 1024
#: Connections, or requests of one worker, that are taken in a row before others get their turn.
FAIR_SHARE = 32

#: Of a lease server: connections; and leases, which cost about 1 KiB each beside their memory.
MAX_LEASE_CONNECTIONS = 1024
MAX_SERVER_LEASES = 256 * 1024
#: Of its messages: bytes that one request may bring, rows of one list, bytes of an error's text.
MAX_LEASE_TRANSFER_BYTES = 1 << 40
MAX_LEASE_ROWS = 1024
MAX_LEASE_ERROR_BYTES = 1024
#: Bytes that a lease server reads from one connection, and writes to it, before others get their turn.
LEASE_TURN_BYTES = 1024 * 1024
#: What a GET brings is copied up to this size, and sent from where it lies beyond.
LEASE_COPY_BYTES = 64 * 1024
#: Bytes of answers that one connection may leave unread; then its requests wait.
MAX_LEASE_UNREAD_BYTES = 512 * 1024
#: Bytes of ended leases that are zeroed in one round of a server's loop.
LEASE_CLEAN_BYTES = 8 * 1024 * 1024
#: Seconds after a lease's end in which the rest of an answer from its memory must have moved on.
LEASE_LINGER_S = 1.0
#: Leases of its cluster that a lease server has open; bytes of them that one request may move, and that are
#: in its own memory at a time.
MAX_FOREIGN_LEASES = 256
MAX_FOREIGN_TRANSFER_BYTES = 256 * 1024 * 1024
MAX_FOREIGN_BYTES = 2 * MAX_FOREIGN_TRANSFER_BYTES

assert MAX_PAGE_BYTES % OS_PAGE_BYTES == 0
assert DIRECTORY_BLOCK_BYTES <= MAX_DATA_BYTES
assert READ_AHEAD_MAX_BYTES <= DIRECTORY_BLOCK_BYTES
assert BULK_WINDOW_BYTES >= 2 * DIRECTORY_BLOCK_BYTES, "one request is under way while another is answered"
assert DIRECTORY_BLOCK_BYTES % CLAIM_BYTES == 0, "a block has one arbiter"
assert READ_AHEAD_MIN_BYTES <= READ_AHEAD_MAX_BYTES
assert MAX_NODES <= 64, "a copyset is one 64-bit word"
assert ADDRESS_LOW % ADDRESS_ALIGNMENT == 0 and ADDRESS_HIGH % ADDRESS_ALIGNMENT == 0
assert PAGE_TIMEOUT_S > PEER_SILENCE_S
assert HANDSHAKE_TIMEOUT_S <= JOIN_TIMEOUT_S < JOIN_WAIT_S
assert MAX_METADATA_BYTES < MAX_UNREAD_BYTES
assert LOG_RUNS * 8 <= MAX_NOTICE_BYTES, "the runs of a full log fit into one message, at 8 bytes a run"
assert MAX_PAGE_BYTES < MAX_DIFF_BYTES < MAX_UNREAD_BYTES, "a message of a release holds a page's changes"
assert 0 < SOLE_WRITER_RELEASES < 256, "streaks are counted in one byte"
assert MIN_STALENESS_NS < MAX_STALENESS_NS < 1 << 62, "what is left of a lease is told in 64 bits"
assert LEASE_COPY_BYTES < MAX_LEASE_UNREAD_BYTES, "an answer that is copied can be kept"
assert MAX_FOREIGN_TRANSFER_BYTES <= MAX_FOREIGN_BYTES, "every request gets its memory some time"
assert HOLD_NS < UNAPPLIED_MAX_NS < HOLD_WAIT_MAX_NS
