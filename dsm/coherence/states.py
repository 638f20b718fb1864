"""States of a page on one node, and the table of transitions between them.

Owns the whole table: an event that finds a page in a state without an entry changes nothing and
raises `InternalError` with the story of the page.  Ranges are shifted with one `bytes.translate`.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

#: Not a state: an entry that the table does not have.
ILLEGAL: Final = 255


class State(IntEnum):
    """What this node has of a page; the last six are transients."""

    INVALID = 0
    SHARED = 1
    EXCLUSIVE = 2
    #: Asked for reading; no copy here.
    READING = 3
    #: Asked for writing; no copy here.
    WRITING = 4
    #: Asked for writing; this node still has a shared copy.
    UPGRADING = 5
    #: Read ahead was asked for; nobody waits yet.
    AHEAD = 6
    #: Workers are losing write access, then SHARED.
    DOWNGRADING = 7
    #: Workers are losing all access, then INVALID.
    INVALIDATING = 8


S = State

#: event -> {state before: state after}.
TRANSITIONS: Final[dict[str, dict[State, State]]] = {
    # requester
    "ask-read": {S.INVALID: S.READING},
    "ask-write": {S.INVALID: S.WRITING, S.SHARED: S.UPGRADING},
    "ask-ahead": {S.INVALID: S.AHEAD},
    "install-shared": {S.READING: S.SHARED, S.AHEAD: S.SHARED},
    "install-exclusive": {
        S.READING: S.EXCLUSIVE,
        S.WRITING: S.EXCLUSIVE,
        S.UPGRADING: S.EXCLUSIVE,
        S.AHEAD: S.EXCLUSIVE,
    },
    "declined": {S.AHEAD: S.INVALID},
    "give-up": {S.READING: S.INVALID, S.WRITING: S.INVALID, S.UPGRADING: S.SHARED, S.AHEAD: S.INVALID},
    # holder
    # In a range that is asked for as one, some pages may be shared already, with readers that died.
    "downgrade": {S.EXCLUSIVE: S.DOWNGRADING, S.SHARED: S.SHARED, S.UPGRADING: S.UPGRADING},
    "downgraded": {S.DOWNGRADING: S.SHARED, S.SHARED: S.SHARED, S.UPGRADING: S.UPGRADING},
    "invalidate": {
        S.EXCLUSIVE: S.INVALIDATING,
        S.SHARED: S.INVALIDATING,
        S.UPGRADING: S.WRITING,
        S.AHEAD: S.INVALID,
    },
    "invalidated": {
        S.INVALIDATING: S.INVALID,
        S.INVALID: S.INVALID,
        S.READING: S.READING,
        S.WRITING: S.WRITING,
        S.AHEAD: S.AHEAD,
    },
    # `release`, without asking anybody
    # A copy gets its twin, or the home writes its own page.
    "upgrade": {S.SHARED: S.EXCLUSIVE},
    # The home touches a page that nobody has touched; or that others have, or change, already.
    "claim": {S.INVALID: S.EXCLUSIVE},
    "receive": {S.INVALID: S.SHARED},
}
#: The same for `bounded`: what becomes of a copy whose lease is over.
LEASE_TRANSITIONS: Final[dict[str, dict[State, State]]] = {
    "expire": {S.SHARED: S.INVALID, S.UPGRADING: S.WRITING},
}
#: Events of `release` alone.
RELEASE_ONLY: Final = frozenset({"upgrade", "claim", "receive"})


def _table(event: dict[State, State]) -> bytes:
    return bytes(event[State(s)] if s in event else ILLEGAL for s in range(256))


#: event -> 256 bytes for `bytes.translate`.
TABLES: Final[dict[str, bytes]] = {
    name: _table(event) for name, event in {**TRANSITIONS, **LEASE_TRANSITIONS}.items()
}


def _states(*states: State) -> bytes:
    return b"[" + b"".join(b"\\x%02x" % s for s in states) + b"]"


#: States in which a worker of this node may read, or write, without asking anyone.
READABLE: Final = frozenset({S.SHARED, S.EXCLUSIVE, S.UPGRADING, S.DOWNGRADING})
WRITABLE: Final = frozenset({S.EXCLUSIVE})
#: States in which this node has a copy that an invalidation takes.
HOLDING: Final = frozenset({S.SHARED, S.EXCLUSIVE, S.UPGRADING})

#: States in which an answer is on its way.
PENDING: Final = frozenset({S.READING, S.WRITING, S.UPGRADING, S.AHEAD})

#: Runs of pages that nobody has asked for yet and that are missing for reading, or for writing.
MISSING_RUN: Final = {
    False: re.compile(_states(S.INVALID) + b"+"),
    True: re.compile(_states(S.INVALID) + b"+|" + _states(S.SHARED) + b"+"),
}
#: The longest run of pages, from a position on, that may be read, or written.
PRESENT_RUN: Final = {
    False: re.compile(_states(*sorted(READABLE)) + b"*"),
    True: re.compile(_states(*sorted(WRITABLE)) + b"*"),
}
