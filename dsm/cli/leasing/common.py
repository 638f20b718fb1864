"""What the verbs of leases share: how the server is named, and how errors end.

==========  =====================================================================
status      meaning
==========  =====================================================================
0           done
1           the server cannot be asked, or a file cannot be read or written
2           something is written wrong, or not permitted with this token
3           the lease has ended, or the server does not know it
4           there is no room for it
130         Ctrl-C
==========  =====================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from dsm.client import LeaseClient, connect
from dsm.client.options import Secret
from dsm.errors import DSMError, LeaseExpiredError, LimitError, UnknownLeaseError, UsageError
from dsm.wire.secret import load_secret

#: Bytes that are moved at once, so that a large lease need not fit into this process.
PIECE_BYTES = 16 * 1024 * 1024


def add_server(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say which server."""
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="the lease server (default: DSM_SERVER, else 127.0.0.1:7412)"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--secret-file", metavar="F", help="the server's secret (default: DSM_SECRET or DSM_SECRET_FILE)"
    )
    group.add_argument("--no-secret", action="store_true", help="the server has none, whatever is set")
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds that the server may be silent (30)"
    )


def run_verb(verb: str, options: argparse.Namespace, act: Callable[[LeaseClient], int | None]) -> int:
    """Connect, act, and turn an error into one line and a status."""
    try:
        with connect(options.server, secret=_secret(options), timeout=options.timeout) as client:
            return act(client) or 0
    except KeyboardInterrupt:
        return 130
    except DSMError as error:
        print(f"dsm {verb}: {error}", file=sys.stderr)
        return _status(error)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"dsm {verb}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _secret(options: argparse.Namespace) -> Secret:
    if options.no_secret:
        return False
    return load_secret({"DSM_SECRET_FILE": options.secret_file}) if options.secret_file else None


def _status(error: DSMError) -> int:
    if isinstance(error, (LeaseExpiredError, UnknownLeaseError)):
        return 3
    if isinstance(error, LimitError):
        return 4
    return 2 if isinstance(error, UsageError) else 1


@contextlib.contextmanager
def naming(path: str | None) -> Iterator[None]:
    """Let an error of the system inside say which file it is about; None: none that has a name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes as they are."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
