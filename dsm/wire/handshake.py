"""How two nodes prove to each other that they know the cluster's secret, before anything else is parsed.

Owns the bytes of a connection up to that proof, as two pure state machines, `Client` and `Server`.
Knows no sockets, clocks or randomness: bytes come in by `feed`, the nonces from the caller.

Four messages of fixed size, each made of a prefix ``magic 4s, version u8, type u8`` and a body::

    client → server   HELLO      node u16, epoch u32, cluster 16s, nonce 32s
    server → client   CHALLENGE  the same
    client → server   PROOF      HMAC-SHA256(secret, "client" label ‖ HELLO ‖ CHALLENGE)
    server → client   WELCOME    HMAC-SHA256(secret, "server" label ‖ HELLO ‖ CHALLENGE)

The client proves itself first, so that whoever can reach a node's port gets no MAC to guess secrets
from.  The labels bind the role: a message that is sent back to its author proves nothing (reflection).
Both nonces, made afresh for every connection, are under both MACs (replay), and so are version, node,
epoch and cluster: nobody can change one of them on the way.  MACs are compared in constant time.

A client that joins does not know the cluster yet and sends `NO_CLUSTER`; a server knows its cluster.
A server that refuses leaves in `refusal` the bytes to send before closing (REFUSE: reason u8): it cannot
be believed, since its sender is not proven, and only decides what the client's error says.

A server may be given `admits`, its rule about node numbers: it is asked once the client has proven itself,
so that strangers learn nothing about members, and before WELCOME, so that who is refused is told.

This authenticates the two ends of a connection.  It does not encrypt or sign what follows: whoever can
change packets between two hosts can still do so.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from dsm.errors import AuthenticationError, DSMError, InternalError, WireError
from dsm.limits import MAX_NODES
from dsm.wire.header import VERSION

NONCE_BYTES: Final = 32
CLUSTER_BYTES: Final = 16
#: What a client says that does not know its cluster yet.
NO_CLUSTER: Final = bytes(CLUSTER_BYTES)
#: What a node says that has no number yet.
NO_NODE: Final = 0xFFFF

_MAGIC: Final = b"DSMH"
_PREFIX = struct.Struct("<4sBB")
_GREETING = struct.Struct("<4sBBHI16s32s")
_PROOF = struct.Struct("<4sBB32s")
_REFUSE = struct.Struct("<4sBBB")

_HELLO: Final = 1
_CHALLENGE: Final = 2
_PROVE: Final = 3
_WELCOME: Final = 4
_REFUSED: Final = 5
_NAMES: Final = {
    _HELLO: "HELLO",
    _CHALLENGE: "CHALLENGE",
    _PROVE: "PROOF",
    _WELCOME: "WELCOME",
    _REFUSED: "REFUSE",
}
_SIZES: Final = {
    _HELLO: _GREETING.size,
    _CHALLENGE: _GREETING.size,
    _PROVE: _PROOF.size,
    _WELCOME: _PROOF.size,
    _REFUSED: _REFUSE.size,
}

_CLIENT_LABEL: Final = b"dsm handshake: client\0"
_SERVER_LABEL: Final = b"dsm handshake: server\0"

#: Reasons in REFUSE.
_WRONG_SECRET: Final = 1
_OTHER_CLUSTER: Final = 2
_OTHER_VERSION: Final = 3
_WRONG_NODE: Final = 4
_NOT_ADMITTED: Final = 5
_REASONS: Final = {
    _WRONG_SECRET: "our secret is not the one of its cluster; give both nodes the same DSM_SECRET",
    _OTHER_CLUSTER: "it belongs to another cluster than this node; check the address",
    _OTHER_VERSION: "it speaks another version of the dsm protocol; install the same dsm on every host",
    _WRONG_NODE: "the node number we gave is its own or none; start this node anew",
    _NOT_ADMITTED: (
        "the node number we gave belongs to a node that it knows: to a live one, or to one that was declared "
        "dead and stays so; start this node anew, it gets another number"
    ),
}


class Peer(msgspec.Struct, frozen=True):
    """What the other side said about itself; it is true once the handshake is done."""

    node: int
    """Its number, or `NO_NODE`."""
    epoch: int
    """Epoch of the cluster as it knows it."""
    cluster: bytes
    """`CLUSTER_BYTES` bytes, or `NO_CLUSTER`."""


class _Refusal(Exception):
    """Why this side refuses: the error for its driver, and the reason code for the other side."""

    def __init__(self, error: DSMError, reason: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.reason = reason


class _Engine:
    """What both roles share: cutting the stream into the expected messages, and failing for good.

    Parameters
    ----------
    secret : bytes
        The cluster's secret.
    nonce : bytes
        `NONCE_BYTES` random bytes, never used for another connection.
    node : int, default `NO_NODE`
        This node's number.
    epoch : int, default 0
        Epoch of the cluster as this node knows it.
    cluster : bytes, default `NO_CLUSTER`
        Identity of the cluster; a server must know it.

    Attributes
    ----------
    done : bool
        The peer has proven itself; `peer` may be believed.
    peer : Peer or None
        None until `done`.
    leftover : bytes
        Once `done`: bytes that came after the handshake.  They belong to `dsm.wire.framing`.
    refusal : bytes
        After `feed` has raised: what to send, if anything, before closing.
    """

    _label: bytes
    _peer_label: bytes

    def __init__(
        self, secret: bytes, nonce: bytes, *, node: int = NO_NODE, epoch: int = 0, cluster: bytes = NO_CLUSTER
    ) -> None:
        if not secret:
            raise InternalError("a handshake needs a secret; load_secret refuses empty ones")
        if len(nonce) != NONCE_BYTES:
            raise InternalError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        if len(cluster) != CLUSTER_BYTES:
            raise InternalError(f"a cluster's identity has {CLUSTER_BYTES} bytes, not {len(cluster)}")
        self._secret = secret
        self._nonce = nonce
        self._node = node
        self._epoch = epoch
        self._cluster = cluster
        self._received = b""
        self._claimed: Peer | None = None
        self._transcript = b""
        #: Type of the message that must come next; 0 when none may.
        self._expected = 0
        self._error: DSMError | None = None
        self.done = False
        self.peer: Peer | None = None
        self.leftover = b""
        self.refusal = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the peer, and return what to send.

        Raises
        ------
        WireError
            The bytes are not a handshake, or one of another version (both are named).
        AuthenticationError
            The peer has another secret, belongs to another cluster, replays or reflects; or it refused us.
        """
        if self._error is not None:
            raise self._error
        if self.done:
            self.leftover += data
            return b""
        if not self._expected:
            raise InternalError("feed() was called before start()")
        self._received += data
        out = b""
        try:
            while (message := self._cut()) is not None:
                out += self._handle(message)
        except _Refusal as refusal:
            self.refusal = _REFUSE.pack(_MAGIC, VERSION, _REFUSED, refusal.reason)
            self._error = refusal.error
            raise refusal.error from None
        except DSMError as error:
            self._error = error
            raise
        return out

    def _cut(self) -> bytes | None:
        """Return the next whole message, or None; refuse what cannot become the expected one."""
        data = self._received
        if not data:
            return None
        if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
            raise WireError(
                f"these bytes are not the handshake of a dsm node: they begin with {data[:4]!r}; "
                "check the address"
            )
        if len(data) < _PREFIX.size:
            return None
        _, version, kind = _PREFIX.unpack_from(data)
        if version != VERSION:
            raise _Refusal(
                WireError(
                    f"the peer speaks version {version} of the dsm protocol, this node version {VERSION}; "
                    "install the same dsm on every host"
                ),
                _OTHER_VERSION,
            )
        if kind == _REFUSED and isinstance(self, Client):
            if len(data) < _REFUSE.size:
                return None
            reason = _REASONS.get(_REFUSE.unpack_from(data)[3], "it gave no reason this version knows")
            raise AuthenticationError(f"the node at the other end refuses this one: {reason}")
        if kind != self._expected:
            raise WireError(
                f"the peer sent {_NAMES.get(kind, f'message {kind}')} where the handshake has "
                f"{_NAMES[self._expected]}; it is not a dsm node, or somebody sends our own bytes back"
            )
        size = _SIZES[kind]
        if len(data) < size:
            return None
        self._received = data[size:]
        return data[:size]

    def _handle(self, message: bytes) -> bytes:
        raise NotImplementedError

    def _greeting(self, kind: int) -> bytes:
        """Return our HELLO or CHALLENGE."""
        return _GREETING.pack(_MAGIC, VERSION, kind, self._node, self._epoch, self._cluster, self._nonce)

    def _meet(self, message: bytes) -> None:
        """Read the peer's HELLO or CHALLENGE; nothing in it is proven yet."""
        *_, node, epoch, cluster, nonce = _GREETING.unpack(message)
        if hmac.compare_digest(nonce, self._nonce):
            raise AuthenticationError("the peer sent our own challenge back: it does not know the secret")
        if NO_CLUSTER not in (cluster, self._cluster) and cluster != self._cluster:
            raise _Refusal(
                AuthenticationError(
                    f"the peer belongs to cluster {cluster.hex()}, this node to {self._cluster.hex()}; "
                    "check the address, or stop the older cluster"
                ),
                _OTHER_CLUSTER,
            )
        if node != NO_NODE and (node == self._node or node >= MAX_NODES):
            what = "is this node's own" if node == self._node else f"is not below {MAX_NODES}"
            raise _Refusal(
                AuthenticationError(f"the peer says it is node {node}, which {what}; check the address"),
                _WRONG_NODE,
            )
        self._claimed = Peer(node, epoch, cluster)

    def _mac(self, label: bytes) -> bytes:
        return hmac.new(self._secret, label + self._transcript, hashlib.sha256).digest()

    def _proof(self, kind: int) -> bytes:
        """Return our PROOF or WELCOME."""
        return _PROOF.pack(_MAGIC, VERSION, kind, self._mac(self._label))

    def _verify(self, message: bytes) -> None:
        """Accept the peer's PROOF or WELCOME, or refuse."""
        mac = _PROOF.unpack(message)[3]
        if not hmac.compare_digest(mac, self._mac(self._peer_label)):
            raise _Refusal(
                AuthenticationError(
                    "the peer could not prove that it knows the secret of the cluster; "
                    "give both nodes the same DSM_SECRET or DSM_SECRET_FILE"
                ),
                _WRONG_SECRET,
            )
        self._accept()
        self.peer = self._claimed
        self.done = True
        self._expected = 0
        self.leftover, self._received = self._received, b""

    def _accept(self) -> None:
        """Refuse a peer that is proven, for other reasons."""


class Client(_Engine):
    """The side that connected.  `start` gives the first bytes to send; for the rest see `_Engine`."""

    _label = _CLIENT_LABEL
    _peer_label = _SERVER_LABEL

    def start(self) -> bytes:
        """Return HELLO; call it once, before `feed`."""
        if self._transcript:
            raise InternalError("start() was called twice: a handshake's nonce is good for one connection")
        self._transcript = self._greeting(_HELLO)
        self._expected = _CHALLENGE
        return self._transcript

    def _handle(self, message: bytes) -> bytes:
        if self._expected == _CHALLENGE:
            self._meet(message)
            assert self._claimed is not None
            if self._claimed.cluster == NO_CLUSTER:
                raise WireError("the peer answers for no cluster: it is not a dsm node that can be joined")
            self._transcript += message
            self._expected = _WELCOME
            return self._proof(_PROVE)
        self._verify(message)
        return b""


class Server(_Engine):
    """The side that was connected to; see `_Engine`.

    Parameters
    ----------
    admits
        Returns what is wrong with the number that a proven client gave, or None; default: nothing is.
    """

    _label = _SERVER_LABEL
    _peer_label = _CLIENT_LABEL

    def __init__(
        self,
        secret: bytes,
        nonce: bytes,
        *,
        node: int = NO_NODE,
        epoch: int = 0,
        cluster: bytes = NO_CLUSTER,
        admits: Callable[[int], str | None] = lambda node: None,
    ) -> None:
        super().__init__(secret, nonce, node=node, epoch=epoch, cluster=cluster)
        if cluster == NO_CLUSTER:
            raise InternalError("a server must know its cluster")
        self._expected = _HELLO
        self._admits = admits

    def _handle(self, message: bytes) -> bytes:
        if self._expected == _HELLO:
            self._meet(message)
            challenge = self._greeting(_CHALLENGE)
            self._transcript = message + challenge
            self._expected = _PROVE
            return challenge
        self._verify(message)
        return self._proof(_WELCOME)

    def _accept(self) -> None:
        assert self._claimed is not None
        wrong = self._admits(self._claimed.node)
        if wrong is not None:
            raise _Refusal(AuthenticationError(wrong), _NOT_ADMITTED)
