"""Cluster handwritten digits: k-means over shared data, centroids that are added up under a lock.

    dsm run -n 4 --nodes 2 examples/kmeans.py --check
    python examples/kmeans.py --points 500                  # one worker, no launcher: the same program

The data are scikit-learn's digits, 1797 pictures of 8 × 8 pixels.  One worker reads them into shared memory;
the others just use them.  In each round (Lloyd's method) every worker gives each of its points to the
nearest centroid, adds its points up by centroid in memory of its own, and then, under a lock, to what all
add up together.  When all have, one worker divides: these are the next centroids.

Look at the pages: the data come to each node once, as many pages as they have; after that a round moves
only the few pages of the centroids and their sums, however many points there are.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

import dsm

HERE = Path(__file__).resolve().parent


def digits(points):
    """Return that many pictures as rows of 64 pixels, again from the start when there are no more."""
    # Python looks for modules in this folder first: its queue.py would hide the standard library's `queue`.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != HERE]
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        sys.exit(f"{error}: scikit-learn is needed, pip install scikit-learn or pip install 'dsm[examples]'")
    data = load_digits().data
    return data[np.arange(points) % len(data)]


def nearest(points, centroids):
    """Return for each point the number of the nearest centroid, and its squared distance."""
    # Without a matrix product: its last bits would depend on how the points are cut into blocks.
    distances = np.empty((len(points), len(centroids)))
    for number, centroid in enumerate(centroids):
        distances[:, number] = np.square(points - centroid).sum(axis=1)
    return distances.argmin(axis=1), distances.min(axis=1)


def added(points, labels, total):
    """Add the points up by label: the sums of their pixels, and in the last column how many they are."""
    np.add.at(total[:, :-1], labels, points)
    np.add.at(total[:, -1], labels, 1)
    return total


def divide(total, centroids):
    """Move each centroid into the middle of its points; one that has lost all stays."""
    some = total[:, -1] > 0
    centroids[some] = total[some, :-1] / total[some, -1:]


def alone(data, clusters, rounds):
    """Do the same in one process with plain numpy arrays."""
    centroids = data[:clusters].copy()
    done, before = 0, None
    while done < rounds and not np.array_equal(before, centroids):
        before, done = centroids.copy(), done + 1
        divide(added(data, nearest(data, before)[0], np.zeros((clusters, 65))), centroids)
    return centroids, nearest(data, centroids)[0], done


def check(data, centroids, labels, inertia, rounds):
    """Compare with plain numpy, and what has come to rest with scikit-learn."""
    expected, marks, done = alone(data, len(centroids), rounds)
    if not (np.array_equal(centroids, expected) and np.array_equal(labels, marks)):
        sys.exit("wrong: the centroids or labels differ from those of one process with plain numpy")
    # The pixels are integers, so their sums are exact and the order in which workers add does not matter.
    print("checked: equal, bit for bit, to one process with plain numpy")
    if done < rounds and np.bincount(labels, minlength=len(centroids)).all():
        from sklearn.cluster import KMeans

        first = data[: len(centroids)]
        model = KMeans(len(centroids), init=first, n_init=1, max_iter=rounds, tol=0).fit(data)
        if not np.isclose(model.inertia_, inertia, rtol=1e-9):
            sys.exit(f"wrong: scikit-learn ends with inertia {model.inertia_}, not {inertia}")
        print("checked: the inertia is that of scikit-learn, within a relative 1e-9")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1797, help="pictures to cluster (1797)")
    parser.add_argument("--clusters", type=int, default=10, help="centroids (10)")
    parser.add_argument("--rounds", type=int, default=100, help="stop after so many (100), or when all rest")
    parser.add_argument("--page-size", type=int, default=4096, help="bytes of the pages of the data (4096)")
    parser.add_argument("--consistency", choices=("sequential", "release"), default="sequential")
    parser.add_argument("--check", action="store_true", help="compare with plain numpy and scikit-learn")
    options = parser.parse_args()
    if not 1 <= options.clusters <= options.points or options.rounds < 1:
        parser.error("--clusters must be 1 or more, --points at least as many, --rounds 1 or more")

    node = dsm.attach()
    array = partial(node.array, consistency=options.consistency)
    data = array("data", (options.points, 64), page_size=options.page_size)
    labels = array("labels", options.points, "i8")
    centroids = array("centroids", (options.clusters, 64))  # an array has pages of its own: reading the
    total = array("total", (options.clusters, 65))  # centroids does not meet those who write here
    counts = array("counts", (node.size, 2), "i8")
    if node.rank == 0:
        data[:] = digits(options.points)
        centroids[:] = data[: options.clusters]
    node.barrier(parties=node.size)

    first, last = (options.points * rank // node.size for rank in (node.rank, node.rank + 1))
    mine = data[first:last]
    node.prefetch(mine)  # in bulk; without this they would come fault by fault, as the first round uses them
    started = time.perf_counter()
    done, before = 0, None
    while done < options.rounds and not np.array_equal(before, centroids):
        before, done = centroids.copy(), done + 1
        marks, _ = nearest(mine, before)
        my_total = added(mine, marks, np.zeros(total.shape))
        with node.lock("total"):
            total += my_total  # one visit a round: the pages come once, not once a point
        node.barrier(parties=node.size)
        if node.rank == 0:
            divide(total, centroids)
            total[:] = 0
        node.barrier(parties=node.size)
    seconds = time.perf_counter() - started
    # Only now, in one go: where two workers' labels meet in a page, sequential consistency moves it between
    # their nodes; with release consistency both write it.
    labels[first:last], distances = nearest(mine, centroids)
    with node.lock("total"):
        total[0, 0] += distances.sum()
    counts[node.rank] = node.node_id, node.statistics().pages_in  # of my node: all its workers together
    node.barrier(parties=node.size)

    if node.rank == 0:
        pages = dict(counts.tolist())  # by node
        print(f"{options.points} points, {len(total)} clusters: {node.size} workers on {len(pages)} nodes")
        print(f"{seconds:.3f} s; {done} rounds, {sum(pages.values())} pages moved between nodes")
        print(f"inertia {total[0, 0]:.2f}, sizes {np.bincount(labels, minlength=options.clusters).tolist()}")
        if options.check:
            check(np.array(data), centroids, labels, total[0, 0], options.rounds)


if __name__ == "__main__":
    main()
