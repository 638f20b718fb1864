"""What a diff payload must be, said plainly: slow, page by page, in numpy."""

from __future__ import annotations

import struct

import numpy as np

BLOCK = 4096
RUNS, MASK, FULL = 1, 2, 3


def entry(block: int, encoding: int, body: bytes) -> bytes:
    return struct.pack("<IHH", block, encoding, len(body)) + body + b"\0" * (-len(body) % 8)


def runs_of(changed: np.ndarray) -> list[tuple[int, int]]:
    """Return (offset, length) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], changed, [False])).astype(np.int8)))
    return [(int(low), int(high - low)) for low, high in edges.reshape(-1, 2)]


def bodies(frame: np.ndarray, twin: np.ndarray) -> dict[int, bytes]:
    """Return every encoding that can say what changed in a block."""
    changed = frame != twin
    if not changed.any():
        return {}
    data = frame[changed].tobytes()
    runs = runs_of(changed)
    found = {
        RUNS: struct.pack("<H", len(runs)) + b"".join(struct.pack("<HH", *run) for run in runs) + data,
        MASK: np.packbits(changed, bitorder="little").tobytes() + data,
    }
    if changed.all():
        found[FULL] = data
    return found


def payload(frames: np.ndarray, twins: np.ndarray, page_size: int, runs: list[tuple[int, int]]) -> bytes:
    """Return what the runs of pages changed, each block in its shortest encoding."""
    out = b""
    for page, count in runs:
        for block in range(page * page_size // BLOCK, (page + count) * page_size // BLOCK):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            found = bodies(frames[part], twins[part])
            if found:
                encoding = min(found, key=lambda each: len(found[each]))
                out += entry(block, encoding, found[encoding])
    return out


def parse(data: bytes) -> list[tuple[int, int, dict[int, int]]]:
    """Return (block, encoding, {offset: value}) of each entry."""
    found = []
    at = 0
    while at < len(data):
        block, encoding, length = struct.unpack_from("<IHH", data, at)
        body = data[at + 8 : at + 8 + length]
        if encoding == FULL:
            offsets = list(range(BLOCK))
        elif encoding == MASK:
            bits = np.unpackbits(np.frombuffer(body[:512], np.uint8), bitorder="little")
            offsets, body = np.flatnonzero(bits).tolist(), body[512:]
        else:
            (count,) = struct.unpack_from("<H", body)
            pairs = [struct.unpack_from("<HH", body, 2 + 4 * i) for i in range(count)]
            offsets = [offset + i for offset, size in pairs for i in range(size)]
            body = body[2 + 4 * count :]
        found.append((block, encoding, dict(zip(offsets, body, strict=True))))
        at += 8 + length + -length % 8
    return found
