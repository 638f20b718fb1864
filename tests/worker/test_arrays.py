"""Arrays and regions: the same plain memory for everybody, described once, closed without a crash."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

import dsm

DTYPES = [
    "f8", "i1", ">u4", "?", "c8", "M8[ns]", "S7", "U2",
    [("a", "i1"), ("b", ">f8", (2,))],
    np.dtype("i1,f8", align=True),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", "CF")
def test_an_array_is_what_numpy_makes(node, dtype, order):
    a = node.array(None, (3, 4), dtype, order=order)
    b = np.zeros((3, 4), dtype, order=order)
    assert type(a) is np.ndarray
    assert (a.dtype, a.shape, a.strides) == (b.dtype, b.shape, b.strides)
    assert a.flags.writeable
    np.testing.assert_array_equal(a, b)


def test_what_is_written_is_read(node):
    a = node.array(None, (300, 1000))
    a[:] = np.arange(300_000.0).reshape(300, 1000)
    assert a.sum() == np.arange(300_000.0).sum()
    assert a[7, 9] == 7009


def test_zero_dimensions_and_zero_sizes(node):
    zero = node.array(None, ())
    zero[()] = 4
    assert zero[()] == 4
    empty = node.array(None, (0, 5))
    assert empty.shape == (0, 5)
    assert empty.sum() == 0


@pytest.mark.parametrize(
    "fill, dtype", [(7, "f8"), (np.nan, "f4"), (b"abc", "S3"), ((1, 2.5), "i1,f8")], ids=str
)
def test_fill(node, fill, dtype):
    a = node.array(None, 5000, dtype, fill=fill)
    expected = np.zeros(5000, dtype)
    expected[...] = fill
    np.testing.assert_array_equal(a, expected)


def test_the_same_name_is_the_same_memory(node):
    a = node.array("same", (10,), fill=np.nan)
    b = node.array("same", (10,), fill=np.nan)
    c = node.open("same")
    a[3] = 5
    assert b[3] == c[3] == 5
    assert np.isnan(c[0])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"shape": (5, 4)}, r"shape=\(4, 5\) \(asked for \(5, 4\)\)"),
        ({"dtype": "f4"}, r"dtype=float64 \(asked for float32\)"),
        ({"page_size": 8192}, r"page_size=4096 \(asked for 8192\)"),
        ({"fill": 1}, r"fill=0 \(asked for 1.0\)"),
        ({"order": "F"}, r"order='C' \(asked for 'F'\)"),
        ({"home": "block"}, r"home='first-touch' \(asked for 'block'\)"),
    ],
    ids=str,
)
def test_another_description_is_refused(node, changes, words):
    node.array("described", (4, 5))
    given = {"shape": (4, 5)} | changes
    with pytest.raises(dsm.UsageError, match=words):
        node.array("described", **given)
    assert node.open("described").shape == (4, 5)


def test_from_array_keeps_contents_and_order(node):
    source = np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4))
    a = node.from_array(None, source)
    np.testing.assert_array_equal(a, source)
    assert (a.dtype, a.strides) == (source.dtype, source.strides)
    assert not np.shares_memory(a, source)


def test_from_array_of_an_existing_name_opens_it(node):
    node.from_array("first", np.arange(5))
    assert node.from_array("first", np.zeros(5, int))[4] == 4
    with pytest.raises(dsm.UsageError, match="shape"):
        node.from_array("first", np.zeros(6, int))


def test_who_opens_what_is_being_filled_waits(node, monkeypatch):
    source = np.arange(200_000.0)
    program = "import dsm; print(dsm.attach().open('filled')[-1])"
    other = []
    real_prefetch = node.prefetch

    def prefetch(array, write):  # while the array is being filled
        other.append(subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True))
        real_prefetch(array, write)

    monkeypatch.setattr(node, "prefetch", prefetch)
    node.from_array("filled", source)
    assert other[0].communicate(timeout=30)[0] == "199999.0\n"


def test_from_array_that_fails_leaves_no_name(node, monkeypatch):
    def interrupted(array, write):
        raise KeyboardInterrupt

    monkeypatch.setattr(node, "prefetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        node.from_array("unfinished", np.ones(5000))
    assert "unfinished" not in node.arrays()
    assert node.array("unfinished", 3).shape == (3,)


def test_an_unknown_name(node):
    with pytest.raises(dsm.UnknownNameError, match="nothing-here"):
        node.open("nothing-here")
    with pytest.raises(dsm.UnknownNameError, match="nothing-here"):
        node.destroy("nothing-here")


def test_nothing_is_opened_without_a_name(node):
    with pytest.raises(dsm.UsageError, match=r"dsm\.ref"):
        node.open(None)
    assert node.array("still here", 3).size == 3


def test_arrays_describes_the_named(node):
    node.array("listed", (2, 3), "f4", order="F")
    node.array(None, 5)
    node.region("raw-unlisted", 10)
    info = node.arrays()["listed"]
    assert (info.shape, info.dtype, info.order, info.nbytes) == ((2, 3), np.dtype("f4"), "F", 24)
    assert "raw-unlisted" not in node.arrays()
    node.destroy("listed")
    assert "listed" not in node.arrays()


# ---- regions ---------------------------------------------------------------------------------------


def test_a_region_is_raw_memory(node):
    r = node.region("raw", 10_000, fill=7)
    assert (r.name, r.size, r.address % 4096, len(r.buffer), r.buffer.readonly) == (
        "raw",
        10_000,
        0,
        10_000,
        False,
    )
    assert bytes(r.buffer[:3]) == b"\7\7\7"
    r.buffer[5] = 9
    a = r.array((100,), "u1", offset=5)
    assert a[0] == 9
    assert a.ctypes.data == r.address + 5
    assert node.region("raw").number == r.number


def test_an_array_must_lie_in_its_region(node):
    r = node.region(None, 100)
    for shape, offset in ((13, 0), (12, 5), (1, -8), (1, 1.5)):
        with pytest.raises(dsm.UsageError, match="offset"):
            r.array(shape, "f8", offset=offset)
    assert r.array(12, "f8", offset=4).nbytes == 96


def test_a_raw_region_is_no_array(node):
    node.region("no-array", 100)
    with pytest.raises(dsm.UsageError, match=r"node\.region"):
        node.open("no-array")
    with pytest.raises(dsm.UsageError, match="array=none"):
        node.array("no-array", 100, "u1")


def test_an_array_keeps_its_region_alive(node):
    a = node.region(None, 8).array(1)
    gc.collect()
    a[0] = 1
    assert a[0] == 1


@pytest.mark.parametrize("nbytes", [-1, 1.5, "x", True])
def test_a_wrong_size_is_named(node, nbytes):
    with pytest.raises(dsm.UsageError, match="nbytes"):
        node.region(None, nbytes)


# ---- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["name", "array", "view", "region"])
def test_destroyed_memory_raises(node, how):
    r = node.region("doomed", 80_000)
    a = r.array(10_000)
    a[:] = 1
    node.destroy({"name": "doomed", "array": a, "view": a[5:9:2], "region": r}[how])
    with pytest.raises(dsm.ClosedError, match="region 'doomed'"):
        a.sum()
    with pytest.raises(dsm.ClosedError):
        r.array(1)
    again = node.region("doomed", 80_000)
    assert again.array(10_000).sum() == 0
    node.destroy(again)


def test_destroyed_in_one_worker_is_closed_in_all(node, run_worker):
    a = node.array("shared-doom", 10_000)
    a[:] = 1
    result = run_worker("import dsm; dsm.attach().destroy('shared-doom')")
    assert result.returncode == 0, result.stderr
    with pytest.raises(dsm.ClosedError, match="shared-doom"):
        a.sum()


def test_what_is_no_shared_memory_cannot_be_destroyed(node):
    for what in (np.zeros(3), 5, None):
        with pytest.raises(dsm.UsageError):
            node.destroy(what)


def test_closing_closes_every_array(node):
    a = node.array(None, 10)
    a[0] = 1
    node.close()
    node.close()
    with pytest.raises(dsm.ClosedError):
        a.sum()
    with pytest.raises(dsm.ClosedError):
        node.array("x", 3)
    for use in (lambda: node.nodes, node.statistics, lambda: node.lock("l"), lambda: node.prefetch(a)):
        with pytest.raises((dsm.ClosedError, dsm.UsageError)):
            use()


def test_many_threads_open_the_same(node):
    found = []

    def work(i):
        a = node.array("raced", (100_000,))
        a[i] = i
        found.append(a)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 16
    assert found[0][:16].tolist() == list(range(16))
