"""The secret that the nodes of a cluster share: where it comes from and what is refused.

Owns the rules for ``DSM_SECRET`` and ``DSM_SECRET_FILE``.  Reads the one file it is told to read and
keeps nothing.  Every error names the command that mends it.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping

from dsm.errors import UsageError

#: Shorter secrets can be guessed from one recorded handshake.
MIN_SECRET_BYTES = 16
#: A file beyond this is something else.
MAX_SECRET_BYTES = 4096

_MAKE = "python3 -c 'import secrets; print(secrets.token_hex(32))'"


def make_secret() -> str:
    """Return a new secret: 64 hexadecimal digits, fit for ``DSM_SECRET`` or a file."""
    return secrets.token_hex(32)


def load_secret(environ: Mapping[str, str]) -> bytes:
    """Return the cluster's secret.

    Parameters
    ----------
    environ : mapping
        ``DSM_SECRET`` is the secret itself and goes first; otherwise ``DSM_SECRET_FILE`` names a file
        that only its owner, who must be this process's user, may read.  White space at the ends does
        not count.

    Raises
    ------
    UsageError
        Neither is set, the secret is too short, or the file is missing, not a file, not ours or open
        to others.
    """
    value = environ.get("DSM_SECRET")
    if value:
        return checked_secret(value, "DSM_SECRET")
    path = environ.get("DSM_SECRET_FILE")
    if path:
        return checked_secret(_read(path), path)
    raise UsageError(
        "nodes of a cluster need a shared secret, and neither DSM_SECRET nor DSM_SECRET_FILE is set; make "
        f"one with `(umask 077; {_MAKE} > ~/.dsm-secret)`, copy it to every host, "
        "and `export DSM_SECRET_FILE=~/.dsm-secret`"
    )


def create_secret_file(path: str) -> None:
    """Write a fresh secret to a file that does not exist, for us alone from its first moment on.

    Raises
    ------
    UsageError
        It cannot be created.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"cannot create the secret file {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask was
        file.write(make_secret() + "\n")


def checked_secret(value: str | bytes, source: str) -> bytes:
    """Return a secret without white space at its ends.

    Parameters
    ----------
    value
        As it was given: the text of a file ends with a new line.
    source
        Where it is from, for messages.

    Raises
    ------
    UsageError
        It is too short or too long, or neither text nor bytes.
    """
    if not isinstance(value, str | bytes | bytearray):  # bytes(32) would be a secret that everybody knows
        raise UsageError(f"the secret in {source} is a {type(value).__name__}; pass text or bytes")
    secret = (os.fsencode(value) if isinstance(value, str) else bytes(value)).strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise UsageError(
            f"the secret in {source} has {len(secret)} bytes, at least {MIN_SECRET_BYTES} are needed; "
            f"make one with `{_MAKE}`"
        )
    if len(secret) > MAX_SECRET_BYTES:
        raise UsageError(
            f"the secret in {source} is longer than {MAX_SECRET_BYTES} bytes; make one with `{_MAKE}`"
        )
    return secret


def _read(path: str) -> bytes:
    path = os.path.expanduser(path)
    try:
        # Not blocking: somebody may have named a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(
            f"DSM_SECRET_FILE={path} cannot be read: {error.strerror}; "
            f"make it with `(umask 077; {_MAKE} > {path})` and copy it to every host"
        ) from None
    try:
        # On the open file: a path could be exchanged in between.
        _check_file(path, os.fstat(descriptor))
        return os.read(descriptor, MAX_SECRET_BYTES + 2)
    finally:
        os.close(descriptor)


def _check_file(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"DSM_SECRET_FILE={path} is not a regular file; name a file that holds the secret")
    user = os.geteuid()
    if status.st_uid != user:
        raise UsageError(
            f"the secret file {path} belongs to user {status.st_uid}, this process runs as {user}; "
            f"run `sudo chown {user} {path}` or name a file of your own"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UsageError(
            f"the secret file {path} has mode {mode:04o}: others may read or change it; "
            f"run `chmod 600 {path}`"
        )
