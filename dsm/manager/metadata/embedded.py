"""The metadata store of a cluster without a server: SQLite in the memory of the coordinator.

Owns the tables.  They live and die with the node that was started without ``--join``.  Rules about what
may be created are in `options`, addresses in `dsm.memory.addresses`.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from dsm.errors import (
    BrokenBarrierError,
    FullError,
    InternalError,
    LimitError,
    PageLostError,
    TooLargeError,
    UnknownNameError,
    UsageError,
)
from dsm.limits import ADDRESS_HIGH, ADDRESS_LOW, MAX_NODES
from dsm.manager.metadata.options import (
    check_heap,
    check_name,
    check_options,
    check_rank,
    check_same,
    check_same_heap,
    check_same_sync,
    check_sync,
)
from dsm.manager.metadata.store import MemberRecord
from dsm.memory.addresses import AddressRange
from dsm.types import FENCE, JOB_BARRIER, HeapOptions, HeapRecord, Region, RegionOptions, SyncObject
from dsm.units import show_bytes

# AUTOINCREMENT: a number that was used is not used again, even when its row is gone.
_SCHEMA = """
CREATE TABLE cluster (epoch INTEGER NOT NULL, next_node INTEGER NOT NULL);
INSERT INTO cluster VALUES (0, 0);
CREATE TABLE members (node INTEGER PRIMARY KEY, address TEXT NOT NULL, epoch INTEGER NOT NULL);
CREATE TABLE regions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, options BLOB NOT NULL,
    address INTEGER NOT NULL, members BLOB NOT NULL, ready INTEGER NOT NULL,
    heap INTEGER, size INTEGER NOT NULL, home INTEGER
);
CREATE INDEX heaps_regions ON regions (heap);
CREATE TABLE heaps (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL, options BLOB NOT NULL
);
CREATE TABLE sync (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL,
    home INTEGER NOT NULL, value INTEGER NOT NULL, bounded INTEGER NOT NULL, UNIQUE (kind, name)
);
CREATE TABLE ranks (rank INTEGER PRIMARY KEY);
"""

_encode = msgspec.msgpack.Encoder().encode
_decode_options = msgspec.msgpack.Decoder(RegionOptions).decode
_decode_heap = msgspec.msgpack.Decoder(HeapOptions).decode
_decode_members = msgspec.msgpack.Decoder(tuple[int, ...]).decode


class EmbeddedStore:
    """A `MetadataStore` in this process.

    Parameters
    ----------
    ranks : int, default 0
        Ranks of the job; 0 without a launcher.
    address_low, address_high : int
        Range of addresses for regions (DSM_ADDRESS_LOW, DSM_ADDRESS_HIGH).
    """

    def __init__(
        self, ranks: int = 0, address_low: int = ADDRESS_LOW, address_high: int = ADDRESS_HIGH
    ) -> None:
        self._ranks = ranks
        self._addresses = AddressRange(address_low, address_high)
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    # -- members -----------------------------------------------------------------------------------------

    def epoch(self) -> int:
        """Return the number of changes of membership so far."""
        return self._number("SELECT epoch FROM cluster")

    def add_member(self, address: str) -> int:
        """Take in a node and begin an epoch; returns its number."""
        with self._transaction() as database:
            node = self._number("SELECT next_node FROM cluster")
            if node >= MAX_NODES:
                live = self._number("SELECT count(*) FROM members")
                raise LimitError(
                    f"{node} nodes have joined this cluster since it was started ({live} are live), at most "
                    f"{MAX_NODES} may: their numbers are not used again; start a new cluster"
                )
            database.execute("UPDATE cluster SET epoch = epoch + 1, next_node = next_node + 1")
            database.execute("INSERT INTO members SELECT ?, ?, epoch FROM cluster", (node, address))
        return node

    def remove_member(self, node: int) -> None:
        """Declare a node dead and begin an epoch; nothing happens when it is no member."""
        with self._transaction() as database:
            if database.execute("DELETE FROM members WHERE node = ?", (node,)).rowcount:
                database.execute("UPDATE cluster SET epoch = epoch + 1")

    def members(self) -> list[MemberRecord]:
        """Return the live nodes, ascending."""
        rows = self._database.execute("SELECT node, address, epoch FROM members ORDER BY node")
        return [MemberRecord(*row) for row in rows]

    # -- regions -----------------------------------------------------------------------------------------

    def create_region(
        self, options: RegionOptions, members: tuple[int, ...], ready: bool = True
    ) -> tuple[Region, bool]:
        """Create a region, or find the one of that name; see `MetadataStore.create_region`."""
        if options.name is not None:
            check_name("region", options.name)
        with self._transaction() as database:
            existing = None if options.name is None else self._region("name = ?", options.name)
            if existing is not None:  # its home may have died since
                check_same(existing.options, check_options(options, (*members, *existing.members)))
                return existing, False
            options = check_options(options, members)
            if not members:
                raise InternalError("a region needs at least one live node")
            size = Region(0, options, 0, members).size
            heap = None if options.heap is None else self._room(options.heap, size)
            address = self._addresses.allocate(size)
            home = options.home if isinstance(options.home, int) else None
            cursor = database.execute(
                "INSERT INTO regions (name, options, address, members, ready, heap, size, home) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (options.name, _encode(options), address, _encode(members), ready, heap, size, home),
            )
            return Region(_inserted(cursor), options, address, members), True

    def find_region(self, key: str | int) -> Region:
        """Return a region by name or number; `UnknownNameError` when there is none."""
        region = self._region("name = ?" if isinstance(key, str) else "number = ?", _fitting(key))
        if region is None:
            raise _unknown(key)
        return region

    def mark_ready(self, number: int) -> None:
        """Note that the first contents of a region are written."""
        cursor = self._database.execute("UPDATE regions SET ready = 1 WHERE number = ?", (_fitting(number),))
        if not cursor.rowcount:
            raise _unknown(number)

    def is_ready(self, number: int) -> bool:
        """Whether the first contents of a region are written."""
        row = self._database.execute(
            "SELECT ready FROM regions WHERE number = ?", (_fitting(number),)
        ).fetchone()
        if row is None:
            raise _unknown(number)
        return bool(row[0])

    def destroy_region(self, key: str | int) -> Region:
        """Forget a region and return what it was; its name is free again, its addresses are not."""
        with self._transaction() as database:
            region = self.find_region(key)
            database.execute("DELETE FROM regions WHERE number = ?", (region.region,))
        return region

    def list_regions(self, named_only: bool = True) -> list[Region]:
        """Return the regions in the order of their creation; see `MetadataStore.list_regions`."""
        condition = "name IS NOT NULL AND ready" if named_only else "1"
        rows = self._database.execute(
            f"SELECT number, options, address, members FROM regions WHERE {condition} ORDER BY number"
        )
        return [_region_of(row) for row in rows]

    # -- heaps -------------------------------------------------------------------------------------------

    def open_heap(self, options: HeapOptions, given: tuple[str, ...]) -> tuple[HeapRecord, bool]:
        """Create a heap, or find the one of that name; see `MetadataStore.open_heap`."""
        check_heap(options)
        with self._transaction() as database:
            existing = self._heap("name = ?", options.name)
            if existing is not None:
                check_same_heap(existing.options, options, given)
                return existing, False
            cursor = database.execute(
                "INSERT INTO heaps (name, options) VALUES (?, ?)", (options.name, _encode(options))
            )
            return HeapRecord(_inserted(cursor), options), True

    def find_heap(self, key: str | int) -> HeapRecord:
        """Return a heap by name or number; `UnknownNameError` when there is none."""
        heap = self._heap("name = ?" if isinstance(key, str) else "number = ?", _fitting(key))
        if heap is None:
            raise UnknownNameError(
                f"no heap has the name or number {key!r} (any more): it was destroyed; node.heap() creates "
                "one"
            )
        return heap

    def destroy_heap(self, number: int) -> list[Region]:
        """Forget a heap and return its regions; see `MetadataStore.destroy_heap`."""
        with self._transaction() as database:
            self.find_heap(number)
            rows = database.execute(
                "SELECT number, options, address, members FROM regions WHERE heap = ? ORDER BY number",
                (number,),
            ).fetchall()
            database.execute("DELETE FROM heaps WHERE number = ?", (number,))
        return [_region_of(row) for row in rows]

    def _heap(self, condition: str, value: str | int) -> HeapRecord | None:
        row = self._database.execute(
            f"SELECT number, options FROM heaps WHERE {condition}", (value,)
        ).fetchone()
        return None if row is None else HeapRecord(row[0], _decode_heap(row[1]))

    def _room(self, name: str, size: int) -> int:
        """Return the number of a heap that may have `size` bytes more."""
        heap = self.find_heap(name)
        most = heap.options.max_bytes
        if most and size > most:
            raise TooLargeError(
                f"{size} bytes were asked of heap {name!r}, whose max_bytes is {most} "
                f"({show_bytes(most)}): they "
                "would not fit if it were empty; ask for less, or make a heap with a larger max_bytes"
            )
        if most:
            # What has its home on a node that is gone is gone, too.
            used = self._database.execute(
                "SELECT coalesce(sum(size), 0) FROM regions WHERE heap = ? "
                "AND (home IS NULL OR home IN (SELECT node FROM members))",
                (heap.number,),
            ).fetchone()[0]
            if used + size > most:
                raise FullError(
                    f"{size} bytes more were asked of heap {name!r}, which has {used} of its max_bytes of "
                    f"{most} "
                    f"({show_bytes(most)}): free what is not needed, or make a heap with a larger max_bytes"
                )
        return heap.number

    # -- synchronization objects, ranks ------------------------------------------------------------------

    def open_sync(
        self, kind: str, name: str, value: int, members: tuple[int, ...], bounded: bool = False
    ) -> SyncObject:
        """Create a synchronization object, or find it; see `MetadataStore.open_sync`."""
        bounded = bounded and kind == "semaphore"
        if kind in ("lock", "rwlock", "event"):
            value = 0
        check_sync(kind, name, value, bounded)
        with self._transaction() as database:
            row = database.execute(
                "SELECT number, kind, name, home, value, bounded FROM sync WHERE kind = ? AND name = ?",
                (kind, name),
            ).fetchone()
            if row is None:
                if not members:
                    raise InternalError("a synchronization object needs a live node as its home")
                home = self._home_of(kind, name, value, members)
                cursor = database.execute(
                    "INSERT INTO sync (kind, name, home, value, bounded) VALUES (?, ?, ?, ?, ?)",
                    (kind, name, home, value, bounded),
                )
                return SyncObject(_inserted(cursor), kind, name, home, value, bounded)
        existing = _object_of(row)
        if existing.home not in members:
            raise _lost(kind, name, existing.home)
        if kind == "condition" and existing.value != value:
            raise UsageError(
                f'condition "{name}" exists with lock {self._lock(existing.value)}, asked for was lock '
                f"{self._lock(value)}; give the same lock, or choose another name"
            )
        check_same_sync(existing, value, bounded)
        return existing

    def _home_of(self, kind: str, name: str, value: int, members: tuple[int, ...]) -> int:
        """Return which of the members is to be the home of a new object."""
        if kind == "condition":
            row = self._database.execute(
                "SELECT home, name FROM sync WHERE number = ? AND kind = 'lock'", (value,)
            ).fetchone()
            if row is None:
                raise UsageError(f'condition "{name}" cannot have object {value} as its lock; give it a lock')
            if row[0] not in members:
                raise _lost("lock", row[1], row[0])
            return int(row[0])
        # What a whole job needs outlives every node but the coordinator, without which nothing lives.
        everybodys = name in (JOB_BARRIER, FENCE)
        return members[0 if everybodys else zlib.crc32(f"{kind}:{name}".encode()) % len(members)]

    def _lock(self, number: int) -> str:
        row = self._database.execute("SELECT name FROM sync WHERE number = ?", (number,)).fetchone()
        return f'"{row[0]}"' if row else str(number)

    def list_sync(self) -> list[SyncObject]:
        """Return the synchronization objects in the order of their creation."""
        rows = self._database.execute(
            "SELECT number, kind, name, home, value, bounded FROM sync ORDER BY number"
        )
        return [_object_of(row) for row in rows]

    def take_rank(self, rank: int | None = None) -> tuple[int, int]:
        """Give a worker its rank; see `MetadataStore.take_rank`."""
        if rank is not None:
            check_rank(rank, self._ranks)
        with self._transaction() as database:
            if rank is None:
                given = [row[0] for row in database.execute("SELECT rank FROM ranks ORDER BY rank")]
                rank = next((i for i, taken in enumerate(given) if taken != i), len(given))
            database.execute("INSERT OR IGNORE INTO ranks VALUES (?)", (rank,))
            size = self._ranks or self._number("SELECT max(rank) + 1 FROM ranks")
        return rank, size

    # -- inside ------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    def _number(self, query: str) -> int:
        value = self._database.execute(query).fetchone()[0]
        assert isinstance(value, int)
        return value

    def _region(self, condition: str, value: str | int) -> Region | None:
        row = self._database.execute(
            f"SELECT number, options, address, members FROM regions WHERE {condition}", (value,)
        ).fetchone()
        return None if row is None else _region_of(row)


def _region_of(row: tuple[int, bytes, int, bytes]) -> Region:
    number, options, address, members = row
    return Region(number, _decode_options(options), address, _decode_members(members))


def _fitting(key: str | int) -> str | int:
    """Return `key`, or what no region has instead of a number that SQLite would not take."""
    return 0 if isinstance(key, int) and not 0 < key < 1 << 63 else key


def _inserted(cursor: sqlite3.Cursor) -> int:
    number = cursor.lastrowid
    assert number is not None
    return number


def _lost(kind: str, name: str, home: int) -> BrokenBarrierError | PageLostError:
    lost = BrokenBarrierError if kind == "barrier" else PageLostError
    return lost(
        f'{kind} "{name}" was kept by node {home}, which is gone: its state is lost; use another name'
    )


def _object_of(row: tuple[int, str, str, int, int, int]) -> SyncObject:
    number, kind, name, home, value, bounded = row
    return SyncObject(number, kind, name, home, value, bool(bounded))


def _unknown(key: str | int) -> UnknownNameError:
    if isinstance(key, str):
        return UnknownNameError(
            f'no region of the name "{key}" exists; node.arrays() lists those that do, node.array("{key}", '
            "shape, dtype) creates it"
        )
    return UnknownNameError(f"no region has number {key} (any more): it was destroyed; create it again")
