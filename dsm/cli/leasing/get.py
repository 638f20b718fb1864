"""``dsm get``: the bytes of a lease, to standard output or into a file."""

from __future__ import annotations

import argparse
import os
import sys

from dsm.cli.leasing.common import PIECE_BYTES, add_server, naming, run_verb, write_all
from dsm.client import LeaseClient
from dsm.errors import UsageError
from dsm.units import bytes_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("token", metavar="TOKEN", help="what `dsm lease` printed")
    parser.add_argument("--offset", default="0", metavar="N", help="the first byte (0); K, M, G are taken")
    parser.add_argument("--length", metavar="N", help="how many bytes (default: all behind the offset)")
    parser.add_argument("--out", metavar="FILE", help="write them there (default, and -: standard output)")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Print the bytes as they are."""

    def act(client: LeaseClient) -> None:
        offset = bytes_of(options.offset, "--offset")
        length = None if options.length is None else bytes_of(options.length, "--length")
        lease = client.open(options.token)
        if offset > lease.nbytes or (length is not None and offset + length > lease.nbytes):
            raise UsageError(
                f"{'all' if length is None else length} bytes at offset {offset} do not lie in the "
                "lease, which "
                f"has {lease.nbytes}"
            )
        end = lease.nbytes if length is None else offset + length
        data = lease.get(offset, min(PIECE_BYTES, end - offset))  # before a file is made
        out = None if options.out == "-" else options.out
        descriptor = _open(out)
        try:
            while True:
                with naming(out):
                    write_all(descriptor, data)
                offset += len(data)
                if offset == end:
                    return
                data = lease.get(offset, min(PIECE_BYTES, end - offset))
        finally:
            if out is not None:
                os.close(descriptor)

    return run_verb("get", options, act)


def _open(path: str | None) -> int:
    if path is None:
        sys.stdout.flush()
        return sys.stdout.fileno()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
