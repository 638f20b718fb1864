"""References, and arrays through multiprocessing's pickler: the same memory, not a copy."""

import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import dsm


def views(a):
    return [a, a[3:7], a[::-2, 1::3], a.T, a[5, 6:7].reshape(()), a[2:2], a[4], np.broadcast_to(a[0], (3, 8))]


@pytest.mark.parametrize("index", range(8))
def test_a_reference_is_the_same_memory(node, index):
    a = node.array(None, (10, 8), ">f4")
    a[:] = np.arange(80).reshape(10, 8)
    view = views(a)[index]
    reference = dsm.ref(view)
    assert len(pickle.dumps(reference)) < 600
    again = pickle.loads(pickle.dumps(reference)).array()
    assert (again.shape, again.strides, again.dtype) == (view.shape, view.strides, view.dtype)
    assert again.flags.writeable == view.flags.writeable
    assert again.__array_interface__["data"][0] == view.__array_interface__["data"][0] or not view.size
    np.testing.assert_array_equal(again, view)


def test_only_shared_memory_has_a_reference(node):
    a = node.array(None, 5)
    for what in (np.zeros(3), a.copy(), [1], 5, a + 1):
        with pytest.raises(dsm.UsageError):
            dsm.ref(what)


def test_a_structured_view(node):
    a = node.array(None, 5, [("x", "i4"), ("y", "f8")])
    a["y"][2] = 7
    assert dsm.ref(a["y"]).array()[2] == 7


def test_multiprocessings_pickler_sends_references(node):
    a = node.array(None, (4, 5))
    again = pickle.loads(ForkingPickler.dumps({"view": a[1:, ::-1], "other": np.arange(3)}))
    again["view"][0, 0] = 9
    assert a[1, 4] == 9
    assert again["other"].tolist() == [0, 1, 2]


def test_its_other_arrays_are_copied(node):
    objects = np.array([{}, "x"], dtype=object)
    for array in (
        np.arange(4),
        np.asfortranarray(np.ones((2, 3))),
        objects,
        np.float64(3),
        node.array(None, 3) + 1,
    ):
        np.testing.assert_array_equal(pickle.loads(ForkingPickler.dumps(array)), array)
        np.testing.assert_array_equal(pickle.loads(ForkingPickler.dumps(array, protocol=5)), array)


def test_subclasses_and_the_writeable_flag_survive(node):
    a = node.array(None, (4, 2), [("x", "f8")])
    records = a.view(np.recarray)
    records.flags.writeable = False
    again = pickle.loads(ForkingPickler.dumps(records))
    assert type(again) is np.recarray
    assert not again.flags.writeable
    a["x"][1, 1] = 5
    assert again.x[1, 1] == 5


def test_plain_pickle_copies(node):
    a = node.array(None, 5)
    again = pickle.loads(pickle.dumps(a))
    again[0] = 1
    assert a[0] == 0


def test_a_destroyed_region(node):
    a = node.array(None, 5)
    reference = dsm.ref(a)
    node.destroy(a)
    with pytest.raises((dsm.ClosedError, dsm.UnknownNameError)):
        reference.array()


def test_another_cluster(private):
    with dsm.attach() as node:
        reference = dsm.ref(node.array(None, 5))
    with dsm.attach(), pytest.raises(dsm.UsageError, match="cluster"):
        reference.array()


# ---- processes ---------------------------------------------------------------------------------------


def double(array):
    array *= 2
    return array[:2]


def add_rank(reference):
    reference.array()[...] += 1
    return dsm.attach().rank


PROGRAM = """
import multiprocessing, sys
import numpy as np
import dsm

def double(array):
    array *= 2
    return array[:2]

def add(reference):
    reference.array()[...] += 1
    return dsm.attach().rank

def through(queue, back):
    queue.get()[0] = 70
    back.send(dsm.attach().open("a")[1:3])

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with dsm.attach() as node:
        a = node.array("a", 12)
        a[:] = 1
        with context.Pool(2) as pool:
            parts = pool.map(double, [a[:4], a[4:8], a[8:]])
            parts[0][0] = 50
            ranks = pool.map(add, [dsm.ref(a[i:i + 1]) for i in range(12)])
            assert node.rank not in ranks, ranks
            pool.close()
            pool.join()
        queue = context.Queue()
        ours, theirs = context.Pipe()
        process = context.Process(target=through, args=(queue, theirs))
        process.start()
        queue.put(a[11:])
        ours.recv()[0] = 60
        process.join()
        assert process.exitcode == 0
        queue.close()
        queue.join_thread()
        print(a.astype(int).tolist())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("launched", [True, False])
def test_pools_queues_and_pipes(manager, method, launched, tmp_path, monkeypatch):
    import os
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != "DSM_NODE"}
    if launched:
        environment["DSM_NODE"] = manager
    result = subprocess.run(
        [sys.executable, str(program), method], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "[51, 60, 3, 3, 3, 3, 3, 3, 3, 3, 3, 70]\n", result.stderr
    assert multiprocessing.active_children() == []
