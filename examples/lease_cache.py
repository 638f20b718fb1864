"""A cache of pictures in leased memory: from Python, from the shell, mapped, and watched while it runs out.

    python examples/lease_cache.py --check                    # alone, with a server of its own
    dsm run -n 4 --nodes 2 examples/lease_cache.py --check    # four workers on two nodes share the cache

Rank 0 serves leased memory; every rank puts some of the tiles of scikit-learn's two photographs there, each
under a lease of `--seconds`, and leaves the tokens in a shared index.  Then all ranks use the cache: over the
network (`dsm.connect`), mapped into their own memory (`node.open_lease`), and rank 0 from the shell
(`dsm get`).  Rank 0 draws what is left of the leases until the last one has run out; whoever asks then gets
`LeaseExpiredError`, loads the tile from the photograph again, and the memory is free for others.

The same by hand, in two terminals:

    $ dsm serve --listen :7412 --size 64M
    $ export DSM_SERVER=localhost:7412
    $ id=$(dsm lease 1M 60s); dsm set $id --in photograph.jpg; dsm leases; dsm get $id --out copy.jpg
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import dsm

HERE = Path(__file__).resolve().parent
BAR = 24


def photographs():
    """Return the two photographs that come with scikit-learn."""
    # Python looks for modules in this folder first: its queue.py would hide the standard library's `queue`.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != HERE]
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        sys.exit(f"{error}: scikit-learn is needed, pip install scikit-learn or pip install 'dsm[examples]'")
    return load_sample_images().images


class Pictures:
    """Where tiles come from when the cache has none: photographs, cut into bands of rows."""

    def __init__(self, rows):
        self.tiles = []
        for picture in photographs():
            self.tiles += np.array_split(picture, max(1, len(picture) // rows))
        self.loads = 0

    def load(self, number):
        """Return a tile from the photograph."""
        self.loads += 1
        return np.ascontiguousarray(self.tiles[number])


class Cache:
    """Tiles in leased memory.  The index, shared by all ranks, has the token of each tile's lease."""

    def __init__(self, client, index, pictures):
        self.client, self.index, self.pictures = client, index, pictures

    def put(self, number, seconds):
        """Lease memory for a tile, fill it and put its token into the index."""
        tile = self.pictures.load(number)
        lease = self.client.lease(tile.nbytes, seconds)
        lease.set(tile.tobytes())
        self.index[number] = lease.read_token.encode()

    def token(self, number):
        """Return what opens a tile's lease, for reading."""
        return bytes(self.index[number]).decode()

    def get(self, number):
        """Return a tile and whether it came from the cache."""
        like = self.pictures.tiles[number]
        try:
            data = self.client.open(self.token(number)).get()
        except dsm.LeaseExpiredError:
            return self.pictures.load(number), False
        return np.frombuffer(data, like.dtype).reshape(like.shape), True


def from_the_shell(address, token):
    """Return what ``dsm get`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tile"
        command = [sys.executable, "-m", "dsm", "get", token, "--out", str(copy)]
        environment = {**os.environ, "DSM_SERVER": address}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return copy.read_bytes()


def watch(client, seconds, draw):
    """Look until all leases have run out and their memory is free; return how many each look has seen."""
    seen, shown = [], time.monotonic()
    while (leases := client.leases()) or client.figures()["used"]:
        seen.append(len(leases))
        if leases and draw and time.monotonic() >= shown:
            left = max(lease.expires_in for lease in leases)
            full = min(BAR, round(BAR * left / seconds))
            print(f"{len(leases):3} leases {'█' * full}{'·' * (BAR - full)} {left:5.2f} s", flush=True)
            shown += seconds / 8
        time.sleep(seconds / 100)
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each lease lasts (3)")
    parser.add_argument("--rows", type=int, default=100, help="rows of a tile (100)")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare everything with the photographs")
    options = parser.parse_args()
    if options.seconds <= 0 or options.rows < 1:
        parser.error("--seconds must be more than 0, --rows 1 or more")

    node = dsm.attach()
    pictures = Pictures(options.rows)
    tiles = range(len(pictures.tiles))
    index = node.array("index", len(tiles), "S80", consistency=options.consistency)
    address = node.array("address", (), "S80", consistency=options.consistency)
    with contextlib.ExitStack() as stack:
        if node.rank == 0:
            server = stack.enter_context(dsm.Server("127.0.0.1:0", size="16M"))
            address[...] = server.address.encode()
        node.barrier(parties=node.size)
        client = stack.enter_context(dsm.connect(bytes(address[()]).decode()))
        cache = Cache(client, index, pictures)
        for number in tiles[node.rank :: node.size]:
            cache.put(number, options.seconds)
        node.barrier(parties=node.size)
        use(node, client, cache, tiles, options, bytes(address[()]).decode())
        node.barrier(parties=node.size)


def map_tile(node, token):
    """Return a lease's memory, mapped, and an event that is set when it has run out here."""
    lease, ended = node.open_lease(token), threading.Event()
    lease.on_expiry(lambda _: ended.set())
    return lease.array(), ended


def use(node, client, cache, tiles, options, address):
    """Read every tile in every way, then see the leases run out."""
    begun = time.monotonic()
    found = [cache.get(number) for number in tiles]
    mapped = {}
    for number in tiles[node.rank :: node.size]:
        with contextlib.suppress(dsm.LeaseExpiredError):  # a slow machine
            mapped[number] = map_tile(node, cache.token(number))
    equal = [
        np.array_equal(tile, cache.pictures.tiles[number])
        for number, (tile, _) in zip(tiles, found, strict=True)
    ]
    if options.check and not all(equal):
        sys.exit("wrong: a tile from the cache differs from the photograph")
    hits = sum(hit for _, hit in found)
    print(f"rank {node.rank}: {hits} of {len(found)} tiles came from the cache, {len(mapped)} mapped")

    if node.rank == 0:
        with contextlib.suppress(subprocess.CalledProcessError):  # as above
            same = from_the_shell(address, cache.token(0)) == cache.pictures.tiles[0].tobytes()
            print(f"dsm get: {'the same bytes' if same else 'wrong'}")
            if options.check and not same:
                sys.exit("wrong: what `dsm get` wrote differs from the photograph")
    seen = watch(client, options.seconds, draw=node.rank == 0)
    if node.rank == 0:
        print(
            f"all had run out after {time.monotonic() - begun:.2f} s; {client.figures()['used']} bytes in use"
        )

    if options.check:
        if any(hit for _, hit in map(cache.get, tiles)):
            sys.exit("wrong: a tile came from the cache after its lease had run out")
        for view, ended in mapped.values():
            ended.wait()  # the server does not list it any more; this process is told a moment later
            try:
                view.sum()
            except dsm.LeaseExpiredError:
                continue
            sys.exit("wrong: memory could be read after its lease had run out")
        if seen != sorted(seen, reverse=True) or client.figures()["used"]:
            sys.exit("wrong: memory of a lease that has run out is in use")
        if node.rank == 0:
            print("checked: equal to the photographs, and gone when the leases had run out")


if __name__ == "__main__":
    main()
