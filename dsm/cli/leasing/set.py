"""``dsm set``: write into a lease: text from the command line, a file, or standard input."""

from __future__ import annotations

import argparse
import os
import stat
import sys

from dsm.cli.leasing.common import PIECE_BYTES, add_server, naming, run_verb
from dsm.client import LeaseClient, RemoteLease
from dsm.errors import UsageError
from dsm.units import bytes_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("token", metavar="TOKEN", help="what `dsm lease` printed")
    parser.add_argument("data", nargs="?", metavar="DATA", help="the bytes; -: those of standard input")
    parser.add_argument("--in", dest="file", metavar="FILE", help="the bytes of a file")
    parser.add_argument("--offset", default="0", metavar="N", help="where they go (0); K, M, G are taken")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    """Write the bytes; nothing is written when they do not fit."""

    def act(client: LeaseClient) -> None:
        if (options.data is None) == (options.file is None):
            raise UsageError("pass either DATA, or --in FILE, or - for standard input")
        offset = bytes_of(options.offset, "--offset")
        lease = client.open(options.token)
        room = lease.nbytes - offset
        if options.file is None and options.data != "-":
            data = os.fsencode(options.data)
            _check(len(data), room)
            lease.set(data, offset)
            return
        if options.file is None:
            _store(lease, sys.stdin.fileno(), offset, room)
            return
        descriptor = os.open(options.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with naming(options.file):
                _store(lease, descriptor, offset, room)
        finally:
            os.close(descriptor)

    return run_verb("set", options, act)


def _store(lease: RemoteLease, descriptor: int, offset: int, room: int) -> None:
    """Write what a descriptor gives.  What cannot say its size is read to its end first."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        data = bytearray()
        while len(data) <= room and (piece := os.read(descriptor, min(PIECE_BYTES, room + 1 - len(data)))):
            data += piece
        _check(len(data), room)
        lease.set(data, offset)
        return
    _check(status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR), room)
    while piece := os.read(descriptor, PIECE_BYTES):
        lease.set(piece, offset)
        offset += len(piece)


def _check(count: int, room: int) -> None:
    if count > room:
        more = "more than " if count > room >= 0 else ""
        raise UsageError(f"the data do not fit: {more}{max(0, room)} bytes are behind the offset")
