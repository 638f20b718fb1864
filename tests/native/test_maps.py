"""Memory maps: taking addresses, and not running out of maps."""

from __future__ import annotations


def test_a_taken_range_is_refused_and_nothing_is_replaced(run):
    run("""
        import mmap
        node = Node(); r = node.region(pages=8)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        taken = libc.mmap(r.address + 4 * PAGE, PAGE, 3, 0x100022, -1, 0)
        assert taken == r.address + 4 * PAGE
        ctypes.c_int.from_address(taken).value = 5
        manager = node.manager()
        for _ in range(2):
            try:
                node.worker(manager)
            except OSError as error:
                assert error.errno == errno.EEXIST and hex(r.address) in str(error)
            else:
                raise AssertionError
            assert ctypes.c_int.from_address(taken).value == 5
            assert _native.region_find(r.address) is None
            _native.worker_stop()
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.munmap(taken, PAGE)
        node.worker(manager)
        r.bytes[0] = 1
        manager.close()
    """)


def test_wrong_arguments_are_refused(run):
    run("""
        node = Node(); r = node.region(pages=8)
        def fails(code, function, *arguments):
            try:
                function(*arguments)
            except OSError as error:
                assert error.errno == code, error
            else:
                raise AssertionError(function)
        fds = r.frames_fd, r.wanted_fd, r.applied_fds[0]
        fails(errno.ESRCH, _native.region_map, 2, r.address, 8, 12, *fds)
        fails(errno.ESRCH, _native.worker_stop)
        fails(errno.ESRCH, _native.call_begin, 16, 0)
        with running(node) as manager:
            fails(errno.EALREADY, r.map)
            fails(errno.EEXIST, _native.region_map, 2, r.address + 4 * PAGE, 8, 12, *fds)
            fails(errno.EINVAL, _native.region_map, 2, fake.ADDRESS, 9, 12, *fds)  # files too short
            fails(errno.EINVAL, _native.region_map, 2, fake.ADDRESS + 1, 8, 12, *fds)
            fails(errno.EINVAL, _native.region_map, 2, fake.ADDRESS, 0, 12, *fds)
            fails(errno.EINVAL, _native.region_map, 2, fake.ADDRESS, 8, 11, *fds)
            fails(errno.EINVAL, _native.region_apply, 1, 4, 5)
            fails(errno.ENOENT, _native.region_apply, 2, 0, 1)
            fails(errno.ENOENT, _native.region_close, 2)
            fails(errno.EBUSY, node.worker, manager)
            fails(errno.EINVAL, _native.call_begin, 3, 0)
            assert _native.region_find(r.address - 1) is None
            assert _native.region_find(r.address + r.size) is None
            r.bytes[0] = 1
    """)


def test_a_closed_region_can_be_mapped_again_and_others_over_it(run):
    run("""
        def in_thread(array, at):
            # Until an error is raised its thread gets poison wherever it would have to ask.
            found = []
            thread = threading.Thread(target=lambda: found.append(array[at]))
            thread.start()
            thread.join()
            return found[0]

        node = Node()
        first, second = node.region(pages=16), node.region(pages=16, number=2)
        with running(node) as manager:
            first.bytes[0] = 1
            _native.region_close(1)
            assert in_thread(first.bytes, 4 * PAGE) == 255  # poison that nobody mends
            first.map()
            assert first.bytes[0] == 1 and first.applied()[0] == _native.WRITE
            assert first.bytes[4 * PAGE] == 0
            assert _native.region_find(first.address) == (1, 0)
            # Another number over its middle: both ends stay closed.
            _native.region_close(1)
            fds = second.frames_fd, second.wanted_fd, second.applied_fds[0]
            _native.region_close(2)
            _native.region_map(2, first.address + 4 * PAGE, 8, 12, *fds)
            found = [_native.region_find(first.address + page * PAGE)[0] for page in range(16)]
            assert found == [1] * 4 + [2] * 8 + [1] * 4
            assert first.bytes[5 * PAGE] == 0 and manager.log()[-1][3:5] == [2, 1]
            assert in_thread(first.bytes, 3 * PAGE) == 255 and in_thread(first.bytes, 12 * PAGE) == 255
            # And the first again over all of it.
            _native.region_close(2)
            first.map()
            assert first.bytes[0] == 1
    """)


def test_a_number_means_its_newest_region_whatever_remains_of_older_ones(run):
    run("""
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            _native.region_close(1)
            older = fake.Region(1, 16, 12, r.address, 1)  # of another cluster, as it were
            older.map()
            _native.region_close(1)
            r.map()
            fake.Region(2, 4, 12, r.address + 8 * PAGE, 1).map()  # cuts what remains of the older one
            r.bytes[0] = 1
            assert r.applied()[0] == _native.WRITE
            manager.lower(1, 0, 4, _native.NONE)
            assert r.applied()[0] == _native.NONE
            _native.region_close(1)
            r.map()
    """)


def test_many_regions_are_found(run):
    run("""
        node = Node()
        with running(node) as manager:
            shared = fake.Region(0, 2, 12, 0, 1)
            count = 20_000
            import random
            numbers = list(range(count)); random.Random(1).shuffle(numbers)
            fds = shared.frames_fd, shared.wanted_fd, shared.applied_fds[0]
            mapped = 0
            for n in numbers[:9000]:
                _native.region_map(n + 1, fake.ADDRESS + (n << 21), 2, 12, *fds)
            for n in numbers[:9000]:
                assert _native.region_find(fake.ADDRESS + (n << 21) + PAGE) == (n + 1, PAGE)
                assert _native.region_find(fake.ADDRESS + (n << 21) + 2 * PAGE) is None
                _native.region_close(n + 1)
            for n in numbers[9000:]:
                _native.region_map(n + 1, fake.ADDRESS + (n << 21), 2, 12, *fds)
                _native.region_close(n + 1)
            assert all(_native.region_find(fake.ADDRESS + (n << 21) + 5) == (n + 1, 5) for n in numbers)
    """)


def test_maps_are_merged_near_the_limit_and_pinned_pages_stay(run):
    run("""
        node = Node(); r = node.region(pages=4000)
        with running(node, worker={"map_limit": 200}) as manager:
            getattr(manager, "raise")(1, 0, 10, _native.WRITE)
            _native.region_apply(1, 0, 3, 1)
            pinned = [_native.WRITE | _native.PINNED] * 3
            assert list(r.applied()[:4]) == [*pinned, 0]
            most = 0
            for page in range(4, 4000, 2):
                r.bytes[page * PAGE] = 1
                if page % 100 == 0:
                    most = max(most, len(fake.maps()))
            assert 100 < most <= 210, most
            counters, _ = manager.statistics()
            assert counters["merges"] > 1000 and counters["poisoned"] == 0
            assert list(r.applied()[:3]) == pinned
            assert (r.frames[4 * PAGE :: 2 * PAGE] == 1).all()
            manager.log()
            assert (r.bytes[4 * PAGE :: 2 * PAGE] == 1).all()  # back by local faults
            assert manager.log() == []
            _native.region_apply(1, 0, 3, 0)
            assert list(r.applied()[:3]) == [_native.WRITE] * 3
    """)


def test_the_kernels_limit_is_met_by_merging(run):
    run("""
        limit = int(open("/proc/sys/vm/max_map_count").read())
        node = Node(); r = node.region(pages=80_000)
        with running(node, worker={"map_limit": 1 << 40}) as manager:
            used = helper.use_up_maps(300)
            if used < 69_000:  # the kernel has a limit within reach
                assert helper.touch(r.address, 3000, 2 * PAGE, 1, 2, 1, 0) == 0
                assert (r.frames[: 6000 * PAGE : 2 * PAGE] != 0).sum() > 2900
                counters, _ = manager.statistics()
                assert counters["merges"] > 100 and counters["poisoned"] == 0
                manager.lower(1, 0, 6000, _native.READ)
                assert (r.applied() <= _native.READ).all()
                manager.lower(1, 0, 6000, 0)
                assert not r.applied().any()
    """)


def test_a_revocation_succeeds_when_no_map_is_left(run):
    run("""
        node = Node(); r = node.region(pages=4000)
        with running(node, around=4000, worker={"map_limit": 1 << 40}) as manager:
            r.bytes[0] = 1
            _native.region_apply(1, 0, 4000, 1)  # one map, which merging leaves alone
            assert (r.applied() == _native.WRITE | _native.PINNED).all()
            used = helper.use_up_maps(0)
            if used < 69_000:
                manager.lower(1, 1000, 1, 0)
                assert r.applied()[1000] & _native.LEVEL == 0
                assert len(fake.maps()) == 1
    """)


def test_when_no_map_is_left_a_fault_is_a_limit_error(run):
    run("""
        node = Node(); r = node.region(pages=4000)
        with running(node, worker={"map_limit": 1 << 40, "error_pause_ns": 1000}) as manager:
            used = helper.use_up_maps(0)
            if used < 69_000:
                r.bytes[1000 * PAGE]
                error = _native.error_take()
                assert error.status == LIMIT, error
    """)


def test_a_region_closes_when_no_map_is_left(run):
    run("""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        node = Node(); r = node.region(pages=16)
        with running(node, around=16, worker={"map_limit": 1 << 40, "error_pause_ns": 1000}) as manager:
            r.bytes[:] = 1
            used, more = helper.use_up_maps(0), [0] * 100
            if used < 69_000:
                for at in range(100):  # shared maps never join: even a map in another's place is one too many
                    more[at] = libc.mmap(None, PAGE, 3, 0x21, -1, 0)
                _native.region_close(1)
                for address in more:
                    libc.munmap(address, PAGE)
                assert r.bytes[0] == 255 and r.frames[0] == 1
                assert _native.error_take().status == CLOSED
    """)


def test_touching_33000_alternating_pages(run):
    run("""
        limit = int(open("/proc/sys/vm/max_map_count").read())
        node = Node(); r = node.region(pages=70_000)
        with running(node, worker={"map_limit": limit - 4096}) as manager:
            helper.touch(r.address, 35_000, 2 * PAGE, 1, 1, 0, 0)
            assert (r.frames[:: 2 * PAGE][:35_000:256] == 1).all()
            counters, _ = manager.statistics()
            assert counters["poisoned"] == 0
            assert limit > 66_000 or counters["merges"] > 1000
    """)


def test_closed_neighbours_are_one_map_and_others_may_lie_between_them(run):
    run("""
        MIB = 1 << 20
        node = Node()
        for number in range(1, 101):  # 2 MiB apart, as the coordinator lays them
            node.region(pages=16, number=number, address=fake.ADDRESS + number * 4 * MIB)
        with running(node) as manager:
            order = list(range(1, 101))
            np.random.default_rng(1).shuffle(order)
            for number in order:
                _native.region_close(number)
            first, last = node.regions[1], node.regions[100]
            [line] = fake.maps()
            assert line.split()[0] == f"{first.address:x}-{last.address + last.size:x}"
            assert helper.touch(first.address, 1, PAGE, 0, 1, 0, 0) == 255
            assert _native.error_take().status == CLOSED
            # The gap is nobody's: it is no part of a region, and a region of another cluster may lie there.
            gap = first.address + 2 * MIB
            assert _native.region_find(gap) is None
            between = Node().region(pages=16, number=200, address=gap)
            between.map()
            assert _native.region_find(gap) == (200, 0)
    """)


def test_a_region_takes_the_place_of_bridges_and_closed_regions(run):
    run("""
        MIB = 1 << 20
        node = Node()
        regions = [node.region(pages=16, number=n, address=fake.ADDRESS + n * 4 * MIB) for n in range(1, 6)]
        over = Node().region(pages=1024, number=9, address=fake.ADDRESS + 10 * MIB)  # from a gap to a gap
        assert over.address + over.size == fake.ADDRESS + 14 * MIB
        with running(node) as manager:
            for region in regions:
                _native.region_close(region.number)
            for _ in range(3):
                over.map()
                assert _native.region_find(over.address) == (9, 0)
                assert _native.region_find(fake.ADDRESS + 12 * MIB) == (9, 2 * MIB)
                _native.region_close(9)
            assert _native.region_find(regions[0].address) == (1, 0)
            assert _native.region_find(regions[4].address) == (5, 0)
            assert len(fake.maps()) <= 4
    """)


def test_no_bridge_is_left_in_front_of_a_region_that_is_opened_again(run):
    """As a lease is that is adopted: its addresses are the same, the bridge was the closed one's."""
    run("""
        MIB = 1 << 20
        node = Node()
        first, second = (node.region(pages=16, number=n, address=fake.ADDRESS + n * 4 * MIB) for n in (1, 2))
        over = Node().region(pages=4096, number=9, address=fake.ADDRESS + 2 * MIB)
        with running(node) as manager:
            _native.region_close(1)
            _native.region_close(2)
            second.map()
            _native.region_close(2)
            over.map()
            assert _native.region_find(second.address - 4096) == (9, 6 * MIB - 4096)
    """)


def test_a_region_takes_the_place_of_any_number_of_closed_ones(run):
    """As after many leases of an earlier cluster of this process."""
    run("""
        MIB = 1 << 20
        node = Node()
        regions = [node.region(pages=1, number=n, address=fake.ADDRESS + n * 4 * MIB) for n in range(1, 301)]
        over = Node().region(pages=300 * 1024, number=999, address=fake.ADDRESS + 4 * MIB)
        with running(node) as manager:
            for region in regions:
                _native.region_close(region.number)
            for _ in range(2):
                over.map()
                for region in regions:
                    assert _native.region_find(region.address) == (999, region.address - over.address)
                _native.region_close(999)
    """)


def test_nothing_is_mapped_once_the_worker_stops(run):
    run("""
        node = Node(); regions = [node.region(pages=2, number=number) for number in range(1, 5)]
        manager = node.manager()
        for r in regions:
            r.frames[:] = 7
            r.wanted[:] = _native.WRITE
        def map_until_stopped(r):
            while not stopping.is_set():
                _native.region_close(r.number)
                try:
                    r.map()
                except OSError as error:
                    assert error.errno == errno.ESRCH
                    return
        for _ in range(150):
            stopping = threading.Event()
            node.worker(manager, error_pause_ns=0)
            threads = [threading.Thread(target=map_until_stopped, args=(r,)) for r in regions]
            for thread in threads:
                thread.start()
            stopping.set()
            _native.worker_stop()
            for thread in threads:
                thread.join()
            assert [r.bytes[0] for r in regions] == [255] * 4
            while (error := _native.error_take()) is not None:
                _native.error_done(error)
        manager.close()
    """)
