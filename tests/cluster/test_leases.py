"""Mapped leases in a cluster: shared while they live, gone for all when they end, whoever dies or stops."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import threading
import time
import uuid

import numpy as np
import pytest

import dsm
import support
from dsm import proc
from dsm.testing import Cluster
from dsm.wire import control

#: Seconds within which a mapped access must raise after the end of a lease.
LATE_S = 1.0
LONG_S = 300


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=2, workers=2) as cluster:
        yield cluster


@pytest.fixture
def fresh():
    with Cluster(nodes=2, workers=2) as cluster:
        yield cluster


# ---- functions that workers run --------------------------------------------------------------------

#: Of the worker's process: leases and arrays by name; what its callbacks noted.
kept = {}
noted = []


def take(node, nbytes, duration, name="lease"):
    lease = kept[name] = node.lease(nbytes, duration)
    return lease.token, lease.read_token


def open_it(node, token, name="lease"):
    lease = kept[name] = node.open_lease(token)
    kept[name, "view"] = lease.array()[1:]
    kept[name, "view"].sum()  # mapped
    return lease.writable, lease.expires_in


def open_ref(node, reference):
    kept["ref"] = reference.lease()
    return kept["ref"].writable, kept["ref"].get(0, 4)


def open_array(node, reference):
    array = reference.array()
    return array.tolist(), array.flags.writeable


def get(node, offset=0, n=None, name="lease"):
    return kept[name].get(offset, n)


def put(node, data, offset=0, name="lease"):
    kept[name].set(data, offset)


def renew(node, duration, name="lease"):
    kept[name].renew(duration)
    return kept[name].expires_in


def release(node, name="lease"):
    kept[name].release()


def expires_in(node, name="lease"):
    return kept[name].expires_in


def how_it_ends(node, name="lease"):
    """Return what every way of using an ended lease raises."""
    lease, view = kept[name], kept[name, "view"]
    raised = []
    for use in (
        lambda: view.sum(),
        lambda: float(view[0]),
        lambda: view.__setitem__(0, 1) or node.check(),
        lease.get,
        lambda: lease.set(b"x"),
        lambda: lease.renew(1),
        lease.release,
        lease.array,
        lambda: lease.buffer,
        lambda: node.prefetch(view),
        lambda: node.pin(view).__enter__(),
        lambda: dsm.ref(view),
    ):
        try:
            raised.append(use())
        except dsm.DSMError as error:
            raised.append(type(error).__name__)
    return raised


def first_error(node, name="lease"):
    """Read the mapped view until that raises; return when the last good read began, and the error."""
    view, last = kept[name, "view"], 0.0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        began = time.monotonic()
        try:
            total = int(view[:64].sum())
        except dsm.DSMError as error:
            return last, type(error).__name__, str(error)
        assert total == 64, "other bytes than those of the lease"
        last = began
    return last, None, None


def get_until_it_raises(node, name="lease"):
    """Learn when it ends, and `get` until that raises; return when the last good one began, and the error."""
    lease, last = kept[name], 0.0
    try:
        lease._ask()
        while True:
            began = time.monotonic()
            assert lease.get(1, 64) == b"\1" * 64
            last = began
    except dsm.DSMError as error:
        return last, type(error).__name__


def call_when_over(node, name="lease"):
    kept[name].on_expiry(lambda lease: noted.append(read_now(lease)))


def read_now(lease):
    """Return what reading a lease raises, when it should be over."""
    try:
        return bytes(lease._memory[:4])
    except dsm.DSMError as error:
        return type(error).__name__


def over(node):
    found = noted[:]
    del noted[: len(found)]
    return found


def leases(node):
    return [(info.id, info.nbytes, info.node) for info in node.leases()]


def regions(node):
    return [(info.region, info.expires_in > 0) for info in node.leases()], sorted(node.arrays())


def open_region_by_number(node, number):
    errors = []
    for request in (control.OpenRegion(number), control.DestroyRegion(number)):
        try:
            node._connection.session.call(request, object)
        except dsm.DSMError as error:
            errors.append(type(error).__name__)
    return errors


def take_many(node, seed):
    """Take, use, renew, release and lose leases without end; killed in the middle of it."""
    draw = random.Random(seed)
    held = []
    while True:
        what = draw.randrange(6)
        try:
            if what < 2 or not held:
                lease = node.lease(draw.randrange(1, 40_000), draw.uniform(0.01, 1.0))
                assert lease.get() == bytes(lease.nbytes), "memory of a new lease is not zero"
                held.append(lease)
            elif what == 2:
                draw.choice(held).set(b"\xee" * 17)
            elif what == 3:
                draw.choice(held).renew(draw.uniform(0.01, 1.0))
            elif what == 4:
                held.pop(draw.randrange(len(held))).release()
            else:
                node.open_lease(draw.choice(held).read_token).get(0, 1)
        except dsm.LeaseExpiredError:
            held = [lease for lease in held if not lease.expired]


# ---- sharing ---------------------------------------------------------------------------------------


def test_a_lease_is_shared_by_its_token_and_zero_at_first(cluster):
    a, b, _, d = cluster.workers
    token, read_token = a.call(take, "10K", LONG_S)
    assert d.call(open_it, token)[0] is True
    assert d.call(get) == bytes(10 * 1024)
    d.call(put, b"from node 1", 100)
    assert a.call(get, 100, 11) == b"from node 1"
    assert b.call(open_it, read_token)[0] is False
    assert b.call(get, 100, 4) == b"from"
    with pytest.raises(dsm.NotPermittedError):
        b.call(put, b"x")
    for call in (renew, release):
        with pytest.raises(dsm.NotPermittedError):
            b.call(call, *([1] if call is renew else []))
    a.call(release)


def test_the_list_has_no_keys_and_arrays_are_not_cluttered(cluster):
    a, _, c, _ = cluster.workers
    token, _ = c.call(take, 5000, LONG_S)
    ((identity, nbytes, node),) = a.call(leases)
    assert (identity, nbytes, node) == (uuid.UUID(token.partition(".")[0]), 5000, 1)
    (listed, named) = a.call(regions)
    assert [alive for _, alive in listed] == [True] and named == []
    assert a.call(open_region_by_number, listed[0][0]) == ["NotPermittedError"] * 2
    c.call(release)
    assert a.call(leases) == []


def test_references_open_with_the_key_that_the_lease_was_opened_with(cluster):
    a, b, c, _ = cluster.workers
    _, read_token = a.call(take, 4096, LONG_S)
    a.call(put, b"abcd")
    b.call(open_it, read_token)
    assert c.call(open_ref, a.call(_reference)) == (True, b"abcd")
    assert c.call(open_ref, b.call(_reference)) == (False, b"abcd")
    a.call(release)
    with pytest.raises(dsm.LeaseExpiredError):
        c.call(open_ref, b.call(_reference))


def _reference(node):
    return dsm.ref(kept["lease"])


def _array_reference(node, low):
    return dsm.ref(kept["lease"].array()[low : low + 3])


def test_arrays_of_leases_pass_by_reference_with_their_key(cluster):
    a, b, c, _ = cluster.workers
    _, read_token = a.call(take, 4096, LONG_S)
    a.call(put, bytes(range(16)))
    b.call(open_it, read_token)
    assert c.call(open_array, a.call(_array_reference, 4)) == ([4, 5, 6], True)
    assert c.call(open_array, b.call(_array_reference, 8)) == ([8, 9, 10], False)
    a.call(release)


def test_two_leases_never_share_memory(cluster):
    a, b, *_ = cluster.workers
    spans = []
    for worker in (a, b, a):
        for _ in range(20):
            spans.append(worker.call(_span_then_release))
    for worker, name in ((a, "one"), (b, "two"), (a, "three")):
        worker.call(take, 4096, LONG_S, name)
        spans.append(worker.call(_span, name))
        worker.call(put, name.encode(), 0, name)
    spans.sort()
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert [a.call(get, 0, 5, "one"), b.call(get, 0, 5, "two")] == [b"one\0\0", b"two\0\0"]
    for worker, name in ((a, "one"), (b, "two"), (a, "three")):
        worker.call(release, name)


def _span(node, name):
    address = kept[name].array().__array_interface__["data"][0]
    return address, address + -(-kept[name].nbytes // 4096) * 4096


def _span_then_release(node):
    kept["short"] = node.lease(5000, LONG_S)
    kept["short"].array()[:] = 0xEE
    span = _span(node, "short")
    kept["short"].release()
    return span


# ---- ends ------------------------------------------------------------------------------------------


def _everywhere(cluster, duration=None):
    """Take a lease full of ones and open it in every worker; then let it end that long from now."""
    token, _ = cluster.workers[0].call(take, 8192, LONG_S)
    cluster.workers[0].call(put, b"\1" * 8192)
    for worker in cluster.workers:
        worker.call(open_it, token)
    if duration is not None:
        cluster.workers[0].call(renew, duration)


ALL_OVER = ["LeaseExpiredError"] * 12


def test_it_is_over_for_everybody_when_its_time_is(cluster):
    _everywhere(cluster, 1.0)
    latest = time.monotonic() + 1.001  # its end was set before
    readers = [worker.start(first_error) for worker in cluster.workers]
    ends = [reader.result() for reader in readers]
    assert all(error == "LeaseExpiredError" and "lease" in text for _, error, text in ends)
    assert max(last for last, _, _ in ends) < latest + LATE_S
    assert [worker.call(how_it_ends) for worker in cluster.workers] == [ALL_OVER] * 4
    assert [worker.call(expires_in) for worker in cluster.workers] == [0.0] * 4


def test_get_returns_nothing_that_was_read_after_the_end(cluster):
    _everywhere(cluster, 1.0)
    latest = time.monotonic() + 1.001  # its end was set before
    readers = [worker.start(get_until_it_raises) for worker in cluster.workers]
    for last, error in [reader.result() for reader in readers]:
        assert error == "LeaseExpiredError"
        assert last < latest


def _in_threads(threads, is_wrong):
    """How often threads that look at a lease until it has ended found something wrong."""
    wrong = []

    def read():
        with contextlib.suppress(dsm.LeaseExpiredError):
            while True:
                if is_wrong():
                    wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return len(wrong)


def _wrong_gets(node, threads):
    """How often threads that get a lease of ones until it has ended got anything else."""
    return _in_threads(threads, lambda: kept["lease"].get().strip(b"\1"))


def _take_array(node):
    kept["array"] = kept["lease"].array()


def _wrong_sums(node, threads):
    """How often threads that sum a lease of ones until it has ended got another sum of one that goes on."""
    lease, array = kept["lease"], kept.pop("array")

    def is_wrong():
        total = int(array.sum())
        if lease.expired:
            raise dsm.LeaseExpiredError(f"lease {lease.id} is over")
        return total != lease.nbytes

    return _in_threads(threads, is_wrong)


@pytest.mark.parametrize("wrong", [_wrong_gets, _wrong_sums])
def test_what_another_thread_was_given_in_place_of_a_page_is_noticed(cluster, wrong):
    here, there = cluster.workers[0], cluster.workers[2]
    for _ in range(20):
        token, _ = here.call(take, 4096, LONG_S)
        here.call(put, b"\1" * 4096)
        here.call(_take_array)
        there.call(open_it, token)
        reading = here.start(wrong, 8)
        there.call(release)
        assert reading.result() == 0


@pytest.mark.parametrize("by", [0, 1, 3])
def test_who_releases_ends_it_for_all_before_release_returns(cluster, by):
    _everywhere(cluster)
    cluster.workers[by].call(release)
    assert [worker.call(how_it_ends) for worker in cluster.workers] == [ALL_OVER] * 4


def test_who_opens_it_too_late_is_told_so(cluster):
    a, *_, d = cluster.workers
    token, read_token = a.call(take, 10, LONG_S)
    a.call(release)
    for each in (token, read_token):
        with pytest.raises(dsm.LeaseExpiredError, match="was released"):
            d.call(open_it, each)
    token, _ = a.call(take, 10, LONG_S)
    a.call(renew, 0.01)
    support.wait_until(lambda: a.call(expires_in) == 0.0)
    with pytest.raises(dsm.LeaseExpiredError, match="ran out"):
        d.call(open_it, token)


def test_renewing_counts_for_everybody(cluster):
    a, *_, d = cluster.workers
    _everywhere(cluster)
    d.call(renew, 50)
    assert 0 < a.call(renew, LONG_S) <= LONG_S + 0.001
    # The other was told of 50 s; when these have passed it asks.
    assert d.call(_expires_in_once_that_has_passed) > 100
    assert d.call(get, 0, 2) == b"\1\1"
    assert d.call(renew, 0.01) <= 0.011
    support.wait_until(lambda: a.call(over_now))
    assert a.call(how_it_ends) == ALL_OVER


def _expires_in_once_that_has_passed(node):
    lease = kept["lease"]
    assert 0 < lease.expires_in <= 50.001
    lease._held.deadline_ns -= 60_000_000_000  # as if it had been told so long ago
    return lease.expires_in


def over_now(node):
    """Whether a mapped access raises."""
    try:
        kept["lease", "view"].sum()
    except dsm.LeaseExpiredError:
        return True
    return False


# ---- callbacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["time", "here", "elsewhere", "renewed"])
def test_callbacks_are_called_once_and_the_memory_is_gone_then(cluster, how):
    a, *_, d = cluster.workers
    _everywhere(cluster)
    for _ in range(3):
        d.call(call_when_over)
    if how == "renewed":
        for duration in (3, 3.5):
            a.call(renew, duration)
    elif how == "time":
        a.call(renew, 0.2)
    else:
        (d if how == "here" else a).call(release)
    found = []
    support.wait_until(lambda: found.extend(d.call(over)) or len(found) == 3)
    assert found == ["LeaseExpiredError"] * 3
    if how == "renewed":
        assert d.call(expires_in) == 0.0 and a.call(expires_in) == 0.0
    d.call(call_when_over)  # after the end: at once
    support.wait_until(lambda: d.call(over) == ["LeaseExpiredError"])


# ---- deaths and stops ------------------------------------------------------------------------------


def _stop(process):
    process.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(process.pid) == "T")


@pytest.mark.parametrize("stopped", [1, 3], ids=["same node", "other node"])
def test_a_stopped_worker_delays_no_end(fresh, stopped):
    others = [worker for rank, worker in enumerate(fresh.workers) if rank != stopped]
    _everywhere(fresh)
    for worker in fresh.workers:
        worker.call(_also, "lease")
    _stop(fresh.workers[stopped].process)
    others[0].call(renew, 0.5)
    for worker in others:
        _, error, _ = worker.call(first_error)
        assert error == "LeaseExpiredError"
    # Others go on: a lease of their own, its time, its release.
    token, _ = others[0].call(take, 4096, LONG_S, "second")
    others[1].call(open_it, token, "second")
    others[1].call(renew, 0.3, "second")
    support.wait_until(lambda: others[1].call(expires_in, "second") == 0.0)
    third, _ = others[0].call(take, 4096, LONG_S, "third")
    others[2].call(open_it, third, "third")
    others[0].call(release, "third")
    assert others[2].call(how_it_ends, "third") == ALL_OVER
    fresh.workers[stopped].process.send_signal(signal.SIGCONT)
    assert fresh.workers[stopped].call(first_error)[1] == "LeaseExpiredError"
    assert fresh.workers[stopped].call(how_it_ends) == ALL_OVER


def _also(node, name):
    """Keep a second view, so that the first is not all that is mapped."""
    kept[name, "again"] = kept[name].array()[4096:]
    return int(kept[name, "again"][0])


def test_releasing_what_a_stopped_worker_has_mapped_takes_a_second_at_most(fresh):
    _everywhere(fresh)
    _stop(fresh.workers[3].process)
    fresh.workers[0].call(release, timeout=20)
    for worker in fresh.workers[:3]:
        assert worker.call(how_it_ends) == ALL_OVER
    fresh.workers[3].process.send_signal(signal.SIGCONT)
    assert fresh.workers[3].call(first_error)[1] == "LeaseExpiredError"
    assert fresh.workers[3].call(how_it_ends) == ALL_OVER


def test_a_stopped_manager_delays_the_end_on_its_own_node_only(fresh):
    _everywhere(fresh)
    _stop(fresh.managers[1].process)
    fresh.workers[0].call(renew, 0.5)
    for worker in fresh.workers[:2]:
        assert worker.call(first_error)[1] == "LeaseExpiredError"
    fresh.managers[1].process.send_signal(signal.SIGCONT)
    for worker in fresh.workers[2:]:
        assert worker.call(first_error)[1] == "LeaseExpiredError"
        assert worker.call(how_it_ends) == ALL_OVER


def test_a_lease_outlives_the_worker_that_took_it(fresh):
    a, b, *_ = fresh.workers
    token, _ = a.call(take, 4096, LONG_S)
    a.call(put, b"left behind")
    a.kill()
    a.process.wait()
    b.call(open_it, token)
    assert b.call(get, 0, 11) == b"left behind"
    b.call(release)
    assert b.call(leases) == []


def test_a_lost_node_takes_only_its_own_leases_along(fresh):
    a, b, c, _ = fresh.workers
    here, _ = a.call(take, 4096, LONG_S, "here")
    there, _ = c.call(take, 4096, LONG_S, "there")
    a.call(put, b"stays", 0, "here")
    c.call(put, b"goes", 0, "there")
    fresh.managers[1].process.kill()
    fresh.managers[1].process.wait()
    b.call(open_it, here, "here")
    assert b.call(get, 0, 5, "here") == b"stays"
    support.wait_until(lambda: a.call(_nodes) == (0,))
    with pytest.raises(dsm.PageLostError):
        b.call(open_it, there, "there")
    new, _ = b.call(take, 4096, LONG_S, "new")
    a.call(open_it, new, "new")
    assert a.call(get, 0, 4, "new") == b"\0" * 4


def _nodes(node):
    return node.nodes


def frames(manager):
    """Return how many regions a manager keeps."""
    return sum(link.startswith("/memfd:dsm-frames") for link in proc.descriptors(manager.pid))


def test_workers_killed_with_leases_leave_nothing_once_their_time_is_over():
    seed = random.randrange(1 << 30)
    draw = random.Random(seed)
    with Cluster(nodes=2, workers=4) as cluster:
        observer, victims = cluster.workers[0], cluster.workers[1:]
        before = [frames(manager) for manager in cluster.managers]
        ends = [worker.start(take_many, seed + number) for number, worker in enumerate(victims)]
        support.wait_until(lambda: len(observer.call(leases)) > 5)
        draw.shuffle(victims)
        for worker in victims:
            time.sleep(draw.uniform(0, 0.1))  # the time of death is what is random here
            worker.kill()
            worker.process.wait()
        for end in ends:
            with pytest.raises(dsm.NodeLostError):  # nothing else went wrong before
                end.result()
        support.wait_until(lambda: observer.call(leases) == [], what=f"seed {seed}")
        support.wait_until(lambda: [frames(manager) for manager in cluster.managers] == before)


# ---- limits ----------------------------------------------------------------------------------------


def test_leases_together_have_what_the_coordinator_was_told(monkeypatch):
    monkeypatch.setenv("DSM_LEASE_BYTES", "64K")
    with Cluster(nodes=2) as cluster:
        a, b = cluster.workers
        with pytest.raises(dsm.LimitError, match="larger than DSM_LEASE_BYTES") as raised:
            b.call(take, "65K", 10)
        assert type(raised.value).__name__ == "TooLargeError"
        a.call(take, "40K", LONG_S)
        with pytest.raises(dsm.LimitError, match="1 leases have 40 KiB of 64 KiB") as raised:
            b.call(take, "40K", 10)
        assert type(raised.value).__name__ == "FullError"
        a.call(release)
        b.call(take, "64K", 10)


def test_a_manager_that_is_told_nonsense_about_leases_does_not_start(monkeypatch):
    monkeypatch.setenv("DSM_LEASE_BYTES", "much")
    with pytest.raises(dsm.UsageError, match="DSM_LEASE_BYTES is 'much'"):
        Cluster()


def test_numpy_reads_and_writes_leases(cluster):
    a, *_, d = cluster.workers
    token, _ = a.call(take, 8 * 1000, LONG_S)
    expected = np.arange(1000.0).reshape(10, 100)
    a.call(_fill, expected)
    d.call(open_it, token)
    assert np.array_equal(d.call(_array), expected)
    a.call(release)


def _fill(node, values):
    kept["lease"].array(values.shape, values.dtype)[:] = values


def _array(node):
    return kept["lease"].array((10, 100), "f8").copy()
