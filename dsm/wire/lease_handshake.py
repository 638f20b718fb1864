r"""How a client of the lease service and its server begin a connection.

Owns the bytes of a connection up to its first request, as two pure state machines, `Client` and `Server`.
Knows no sockets, clocks or randomness: bytes come in by `feed`, the nonces from the caller.

All messages have 40 bytes: ``magic "DSML", version u8, type u8, detail u16, body 32s``::

    client → server   HELLO      a nonce
    server → client   WELCOME    zeros: the server has no secret; done
    server → client   CHALLENGE  a nonce: it has one
    client → server   PROOF      HMAC-SHA256(secret, "dsm leases: client\0" ‖ HELLO ‖ CHALLENGE)
    server → client   WELCOME    HMAC-SHA256(secret, "dsm leases: server\0" ‖ HELLO ‖ CHALLENGE)
    server → client   REFUSE     zeros; detail says why, and the connection is closed

As between nodes (`dsm.wire.handshake`): the client proves itself first, labels bind the role, both nonces
are under both MACs, and what follows is not encrypted.  Magic and labels differ, so that no proof for the
one is one for the other.  A client that was given a secret does not go on with a server that asks for none:
whoever answered in the server's place would be believed.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

from dsm.errors import AuthenticationError, DSMError, InternalError, LimitError, WireError
from dsm.wire.leases import VERSION

MAGIC: Final = b"DSML"
NONCE_BYTES: Final = 32
#: magic, version, type, detail, body.
MESSAGE: Final = struct.Struct("<4sBBH32s")
MESSAGE_BYTES: Final = MESSAGE.size
assert MESSAGE_BYTES == 40

HELLO: Final = 1
CHALLENGE: Final = 2
PROOF: Final = 3
WELCOME: Final = 4
REFUSE: Final = 5
_NAMES: Final = {HELLO: "HELLO", CHALLENGE: "CHALLENGE", PROOF: "PROOF", WELCOME: "WELCOME", REFUSE: "REFUSE"}
_NOTHING: Final = bytes(32)

CLIENT_LABEL: Final = b"dsm leases: client\0"
SERVER_LABEL: Final = b"dsm leases: server\0"

#: Details of REFUSE.
WRONG_SECRET: Final = 1
OTHER_VERSION: Final = 2
TOO_MANY: Final = 3


def refusal(detail: int) -> bytes:
    """Return the REFUSE of a server."""
    return MESSAGE.pack(MAGIC, VERSION, REFUSE, detail, _NOTHING)


class _Engine:
    """What both roles share: cutting the stream into messages, and failing for good.

    Attributes
    ----------
    done : bool
        The connection may be used.
    leftover : bytes
        Once `done`: bytes that came after the handshake.
    refusal : bytes
        After `feed` has raised: what to send, if anything, before closing.
    """

    def __init__(self, secret: bytes | None, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise InternalError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        self._secret = secret
        self._nonce = nonce
        self._received = b""
        self._transcript = b""
        self._error: DSMError | None = None
        self.done = False
        self.leftover = b""
        self.refusal = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the peer, and return what to send.

        Raises
        ------
        WireError
            The bytes are not this handshake, or one of another version.
        AuthenticationError
            The peer has another secret, or only one side has one.
        LimitError
            The server has too many connections.
        """
        if self._error is not None:
            raise self._error
        self._received += data
        out = b""
        try:
            while not self.done and (message := self._cut()):
                out += self._handle(message[5], int.from_bytes(message[6:8], "little"), message)
        except DSMError as error:
            self._error = error
            raise
        if self.done:
            self.leftover += self._received
            self._received = b""
        return out

    def _cut(self) -> bytes:
        """Return the next whole message; refuse at once what cannot become one."""
        data = self._received
        if data[:4] != MAGIC[: len(data)]:
            raise WireError(
                f"these bytes are not the handshake of dsm's lease service: they begin with {data[:4]!r}; "
                "check the address"
            )
        if len(data) > 4 and data[4] != VERSION:
            self.refusal = refusal(OTHER_VERSION)
            raise WireError(
                f"the other side speaks version {data[4]} of the lease service, this one version {VERSION}; "
                "install the same dsm on both"
            )
        if len(data) < MESSAGE_BYTES:
            return b""
        self._received = data[MESSAGE_BYTES:]
        return data[:MESSAGE_BYTES]

    def _handle(self, kind: int, detail: int, message: bytes) -> bytes:
        raise NotImplementedError

    def _greeting(self, kind: int) -> bytes:
        return MESSAGE.pack(MAGIC, VERSION, kind, 0, self._nonce)

    def _mac(self, kind: int, label: bytes) -> bytes:
        """Return a PROOF or WELCOME."""
        assert self._secret is not None
        body = hmac.digest(self._secret, label + self._transcript, "sha256")
        return MESSAGE.pack(MAGIC, VERSION, kind, 0, body)


class Client(_Engine):
    """The side that connected; `start` gives the first bytes to send.

    Parameters
    ----------
    secret
        The server's secret; None when it asks for none.
    nonce
        `NONCE_BYTES` random bytes, never used for another connection.
    """

    def start(self) -> bytes:
        """Return HELLO."""
        self._transcript = self._greeting(HELLO)
        return self._transcript

    def _handle(self, kind: int, detail: int, message: bytes) -> bytes:
        if kind == REFUSE:
            raise _refused(detail)
        challenged = len(self._transcript) > MESSAGE_BYTES
        if kind == CHALLENGE and not challenged:
            if self._secret is None:
                raise AuthenticationError(
                    "the lease server asks for its secret; pass secret= (in the shell --secret-file), or set "
                    "DSM_SECRET or DSM_SECRET_FILE"
                )
            self._transcript += message
            return self._mac(PROOF, CLIENT_LABEL)
        if kind != WELCOME:
            raise WireError(
                f"the server sent {_NAMES.get(kind, kind)} where its handshake has something else"
            )
        if self._secret is not None and not challenged:
            raise AuthenticationError(
                "the server at this address asks for no secret, and this client has one, so that it could be "
                "any server; start it with the secret, or pass secret=False to trust it"
            )
        if challenged and not hmac.compare_digest(message, self._mac(WELCOME, SERVER_LABEL)):
            raise AuthenticationError(
                "the server could not prove that it knows the secret; give both sides the same DSM_SECRET"
            )
        self.done = True
        return b""


class Server(_Engine):
    """The side that was connected to; parameters as of `Client`."""

    def _handle(self, kind: int, detail: int, message: bytes) -> bytes:
        if kind != (PROOF if self._transcript else HELLO) or detail:
            raise WireError(
                f"the client sent {_NAMES.get(kind, kind)} where its handshake has something else"
            )
        if self._secret is None:
            self.done = True
            return MESSAGE.pack(MAGIC, VERSION, WELCOME, 0, _NOTHING)
        if kind == HELLO:
            challenge = self._greeting(CHALLENGE)
            self._transcript = message + challenge
            return challenge
        if not hmac.compare_digest(message, self._mac(PROOF, CLIENT_LABEL)):
            self.refusal = refusal(WRONG_SECRET)
            raise AuthenticationError("the client could not prove that it knows the secret")
        self.done = True
        return self._mac(WELCOME, SERVER_LABEL)


def _refused(detail: int) -> DSMError:
    if detail == TOO_MANY:
        return LimitError("the lease server has as many connections as it takes; close some, or try later")
    if detail == OTHER_VERSION:
        return WireError(
            "the lease server speaks another version of the lease service; install the same dsm on both"
        )
    if detail == WRONG_SECRET:
        return AuthenticationError(
            "the lease server refuses this client: its secret is another one; give both sides the same "
            "DSM_SECRET"
        )
    return AuthenticationError(f"the lease server refuses this client, for reason {detail}")
