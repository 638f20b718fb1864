"""Faults that the wanted table or the manager answers."""

from __future__ import annotations

import pytest


def test_a_read_fault_brings_the_page_and_leaves_it_read_only(run):
    run("""
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            r.frames[:] = 7
            assert r.bytes[PAGE] == 7
            assert list(r.applied()[:4]) == [0, _native.READ, 0, 0]
            [event] = manager.log()
            assert event[:5] == [0, 0, _native.OP_FAULT_READ, 1, 1] and event[7] != 0
            r.bytes[PAGE] = 8
            assert r.frames[PAGE] == 8 and r.applied()[1] == _native.WRITE
            assert [event[2] for event in manager.log()] == [_native.OP_FAULT_WRITE]
            counters, latency = manager.statistics()
            assert (counters["faults_read"], counters["faults_write"]) == (1, 1) and sum(latency) == 2
    """)


def test_a_write_fault_on_an_absent_page_asks_once(run):
    run("""
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            r.bytes[3 * PAGE + 5] = 1
            assert [event[2:5] for event in manager.log()] == [[_native.OP_FAULT_WRITE, 1, 3]]
            assert r.frames[3 * PAGE + 5] == 1
    """)


def test_a_granted_run_is_mapped_by_one_fault(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node, around=32) as manager:
            assert r.bytes[8 * PAGE] == 0
            assert list(r.applied()) == [0] * 8 + [_native.READ] * 32 + [0] * 24
            assert r.bytes[8 * PAGE : 40 * PAGE].sum() == 0
            counters, _ = manager.statistics()
            assert (counters["faults_read"], counters["faults_local"], counters["mprotects"]) == (1, 0, 1)
    """)


def test_a_page_that_is_wanted_already_asks_nobody(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node) as manager:
            getattr(manager, "raise")(1, 10, 20, _native.WRITE)
            r.bytes[15 * PAGE] = 1
            assert list(r.applied()) == [0] * 15 + [_native.WRITE] * 15 + [0] * 34
            assert manager.log() == []
            counters, _ = manager.statistics()
            assert counters["faults_local"] == 1 and counters["faults_write"] == 0
    """)


def test_the_run_ends_at_a_marked_page_whose_first_use_is_told(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node, around=16, mark=True) as manager:
            r.bytes[0]
            assert list(r.applied()[:17]) == [_native.READ] * 8 + [0] * 9
            assert r.wanted[8] == _native.READ | _native.MARK
            manager.log()
            r.bytes[8 * PAGE]
            assert r.wanted[8] == _native.READ and list(r.applied()[8:17]) == [_native.READ] * 8 + [0]
            assert [event[2:5] for event in manager.log()] == [[_native.OP_TOUCHED, 1, 8]]
            for i in range(600):  # their slots are freed again
                getattr(manager, "raise")(1, 20, 1, _native.READ, 20)
                manager.lower(1, 20, 1, 0)
                getattr(manager, "raise")(1, 20, 1, _native.READ, 20)
                r.bytes[20 * PAGE]
            assert 550 < len([event for event in manager.log() if event[2] == _native.OP_TOUCHED])
    """)


def test_one_access_over_the_border_of_two_pages(run):
    run("""
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            word = ctypes.c_uint64.from_address(r.address + 2 * PAGE - 4)
            word.value = 0x1122334455667788
            assert bytes(r.frames[2 * PAGE - 4 : 2 * PAGE + 4]) == bytes.fromhex("8877665544332211")
    """)


@pytest.mark.parametrize("shift", [16, 21])
def test_big_pages_move_as_one(run, shift):
    run(f"""
        node = Node(); r = node.region(pages=4, shift={shift})
        with running(node) as manager:
            r.bytes[2 << {shift}] = 1
            r.bytes[(3 << {shift}) - 1] = 2
            assert list(r.applied()) == [0, 0, _native.WRITE, 0]
            assert [event[4] for event in manager.log()] == [2]
            manager.lower(1, 0, 4, _native.READ)
            assert r.bytes[(3 << {shift}) - 1] == 2 and manager.log() == []
            r.bytes[(2 << {shift}) + 5000] = 3
            assert [event[2] for event in manager.log()] == [_native.OP_FAULT_WRITE]
    """)


@pytest.mark.parametrize("apart", [0, 1])
def test_sixteen_threads_at_once(run, apart):
    run(f"""
        node = Node(); r = node.region(pages=512)
        with running(node, around=4) as manager:
            r.frames[:] = 1
            assert helper.touch(r.address, 512, PAGE, 0, 16, {apart}, 0) == {512 if apart else 512 * 16}
            helper.touch(r.address, 512, PAGE, 1, 16, {apart}, 0)
            assert (r.applied() == _native.WRITE).all()
            assert (r.frames[::PAGE] != 1).sum() >= 480
    """)


def test_more_threads_than_slots(run):
    run("""
        node = Node(); r = node.region(pages=400)
        with running(node) as manager:
            r.frames[:] = 1
            assert helper.touch(r.address, 400, PAGE, 0, 400, 1, 65536) == 400
    """)


def test_errno_and_small_stacks_survive(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node) as manager:
            assert helper.errno_after(r.address) == 77
            helper.touch(r.address + 8 * PAGE, 8, PAGE, 1, 2, 1, 32768)
            for i, size in enumerate([8192, 16384, 65536]):
                helper.touch_on_alternate_stack(r.address + (20 + i) * PAGE, size)
            assert list(r.frames[20 * PAGE : 23 * PAGE : PAGE]) == [1, 1, 1]
    """)


def test_a_grant_that_was_revoked_before_it_was_applied_is_not_applied(run):
    run("""
        def late(self):
            # Grant, revoke, and only then end the wait: twice, then for good.
            def fault(worker, slot, op, number, page, rounds=[0]):
                self.tables[number].raise_(page, 1, _native.WRITE)
                rounds[0] += 1
                if rounds[0] <= 2:
                    self.obeyed(self.tables[number].lower(page, 1, rounds[0] - 1))
                self.board.complete(worker, slot, 0)
            self.fault = fault
            self.run()

        node = Node(); r = node.region(pages=4)
        manager = node.manager(late)
        node.worker(manager)
        r.bytes[0] = 5
        assert len(manager.log()) == 3 and r.frames[0] == 5
        manager.close()
    """)


def test_applying_a_range_gives_each_page_what_is_wanted(run):
    run("""
        node = Node(); r = node.region(pages=64)
        with running(node) as manager:
            grant = getattr(manager, "raise")
            grant(1, 0, 20, _native.READ)
            grant(1, 10, 4, _native.WRITE)
            grant(1, 30, 10, _native.WRITE, 35)
            levels = [1] * 10 + [3] * 4 + [1] * 6 + [0] * 10 + [3] * 10 + [0] * 24
            _native.region_apply(1, 0, 64)
            assert list(r.applied()) == levels
            assert [event[2:5] for event in manager.log()] == [[_native.OP_TOUCHED, 1, 35]]
            assert manager.statistics()[0]["mprotects"] == 6
            _native.region_apply(1, 5, 10, 1)
            pinned = [64 if 5 <= page < 15 else 0 for page in range(64)]
            assert list(r.applied()) == [level | pin for level, pin in zip(levels, pinned)]
            r.bytes[12 * PAGE] = 1; r.bytes[9 * PAGE]; r.bytes[39 * PAGE] = 1
            assert manager.log() == []
    """)
