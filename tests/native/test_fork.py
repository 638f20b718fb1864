"""What fork leaves to a child."""

from __future__ import annotations


def test_a_child_neither_sees_nor_changes_the_parents_memory(run):
    run("""
        node = Node(); r = node.region(pages=8)
        with running(node, worker={"error_pause_ns": 1_000_000}) as manager:
            r.bytes[0] = 5
            manager.log()
            child = os.fork()
            if child == 0:
                assert _native.worker_forked()
                assert _native.region_find(r.address) == (1, 0)
                assert r.bytes[0] == 255 and (r.bytes == 255).all()
                r.bytes[:] = 9
                error = _native.error_take()
                assert error.status == LOST and _native.error_take() is None
                _native.error_done(error)
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert not _native.worker_forked()
            assert r.bytes[0] == 5 and (r.frames[1:] == 0).all()
            assert manager.log() == []
    """)


def test_a_child_starts_afresh_at_the_same_addresses_and_so_does_its_child(run):
    run("""
        node = Node(workers=3); r = node.region(pages=8)
        with running(node) as manager:
            a = r.words()
            a[0] = 1
            child = os.fork()
            if child == 0:
                node.worker(manager, 1)
                assert a[0] == 1
                a[1] = 2
                grandchild = os.fork()
                if grandchild == 0:
                    node.worker(manager, 2)
                    a[2] = 3
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
                assert a[2] == 3
                _native.worker_stop()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert list(a[:3]) == [1, 2, 3]
    """)


def test_children_of_multiprocessing_subprocess_and_c(run):
    run("""
        import multiprocessing, subprocess
        node = Node(workers=2); r = node.region(pages=8)
        def work(queue):
            node.worker(manager, 1)
            r.bytes[1] = 4
            queue.put(int(r.bytes[0]))
        with running(node, worker={"error_pause_ns": 1_000_000}) as manager:
            r.bytes[0] = 3
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            process = context.Process(target=work, args=(queue,))
            process.start()
            assert queue.get() == 3
            process.join()
            assert process.exitcode == 0 and r.bytes[1] == 4
            assert subprocess.run(["true"]).returncode == 0
            seen = lambda: os.write(1, bytes(r.bytes[:1]))
            ran = subprocess.run(["true"], preexec_fn=seen, stdout=subprocess.PIPE)
            assert ran.stdout == b"\\xff"
            child = helper.fork_and_read(r.address)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 255
            assert r.bytes[0] == 3
    """)


def test_forks_while_threads_fault_do_not_hang(run):
    run("""
        node = Node(workers=2); r = node.region(pages=512)
        with running(node, worker={"error_pause_ns": 1_000_000}) as manager:
            stop = threading.Event()
            def fault():
                while not stop.is_set():
                    helper.touch(r.address, 512, PAGE, 1, 2, 0, 0)
                    _native.region_apply(1, 0, 512)
            def revoke():
                while not stop.is_set():
                    manager.lower(1, 0, 512, 0)
            threads = [threading.Thread(target=fault), threading.Thread(target=revoke)]
            for thread in threads:
                thread.start()
            for i in range(40):
                child = os.fork()
                if child == 0:
                    assert r.bytes[PAGE * i] == 255
                    node.worker(manager, 1)
                    _native.worker_stop()
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            stop.set()
            for thread in threads:
                thread.join()
    """)


def test_a_true_segfault_in_a_child_is_one(run):
    run("""
        node = Node(); r = node.region(pages=8)
        with running(node) as manager:
            child = os.fork()
            if child == 0:
                ctypes.string_at(8)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    """)


def test_stop_and_start_again_in_one_process(run):
    run("""
        node = Node(); r = node.region(pages=8)
        manager = node.manager()
        for i in range(20):
            node.worker(manager, error_pause_ns=1000)
            assert r.bytes[0] == i
            r.bytes[0] = i + 1
            _native.worker_stop()
            assert not _native.worker_forked()
            assert r.bytes[5 * PAGE] == 255
            error = _native.error_take()
            assert error.status == CLOSED
            _native.error_done(error)
        # A thread is joined a moment before the system has taken it off its lists.
        until(lambda: len(os.listdir("/proc/self/task")) == 1)
        manager.close()
    """)
