"""Tokens: a lease's id and a capability for it in one piece of text.

Owns the text, and the form of ids.  ``<id>.<key>``, both 32 hexadecimal digits: safe in a shell, a URL and a
file name.
"""

from __future__ import annotations

import binascii

from dsm.errors import UsageError

ID_BYTES = 16
KEY_BYTES = 16


def random_id(random: bytes) -> bytes:
    """Return 16 random bytes as those of a random UUID (RFC 9562, section 5.4)."""
    return random[:6] + bytes((random[6] & 0x0F | 0x40, random[7], random[8] & 0x3F | 0x80)) + random[9:]


def show_id(identity: bytes) -> str:
    """Return an id as messages show it: a UUID with dashes, or the hexadecimal digits of what is none."""
    text = identity.hex()
    if len(identity) != ID_BYTES:
        return text or "of no bytes"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def token_of(identity: bytes, key: bytes) -> str:
    """Return the token of a lease and a key."""
    return f"{identity.hex()}.{key.hex()}"


def parse_token(token: str) -> tuple[bytes, bytes]:
    """Return id and key of a token.

    Raises
    ------
    UsageError
        The text is no token.
    """
    identity, dot, key = token.strip().partition(".") if isinstance(token, str) else ("", "", "")
    try:
        found = binascii.unhexlify(identity.replace("-", "")), binascii.unhexlify(key)
    except (binascii.Error, ValueError):
        found = b"", b""
    if not dot or len(found[0]) != ID_BYTES or len(found[1]) != KEY_BYTES:
        # It may be nearly one, with most of a key in it: messages are no place for that.
        shown = (
            f"a text of {len(token)} characters" if isinstance(token, str) else f"a {type(token).__name__}"
        )
        raise UsageError(f"{shown} is no token of a lease; pass what `dsm lease` printed, or Lease.token")
    return found
