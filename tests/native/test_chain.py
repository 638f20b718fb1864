"""Faults that are not ours go where they would have gone without us."""

from __future__ import annotations

import signal

import pytest

SEGFAULT = "ctypes.string_at(8)"


@pytest.mark.parametrize("before", [True, False])
def test_a_true_segfault_kills_with_the_traceback_of_faulthandler(run, before):
    enable = "import faulthandler; faulthandler.enable()\n"
    ended = run(
        f"""
        {enable if before else ""}
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            helper.set_clock(time.monotonic_ns())  # or the service thread looks, too, once a second
            {"" if before else enable}
            assert _native.handler_check() is {not before}
            r.bytes[0] = 1
            {SEGFAULT}
        """,
        status=-signal.SIGSEGV,
        preload=True,
    )
    assert ended.stderr.count("Fatal Python error: Segmentation fault") == 1
    assert "in string_at" in ended.stderr


def test_a_true_segfault_without_faulthandler_just_kills(run):
    ended = run(
        f"""
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            r.bytes[0] = 1
            {SEGFAULT}
        """,
        status=-signal.SIGSEGV,
    )
    assert ended.stderr == ""


def test_the_service_thread_mends_a_replaced_handler(run):
    run(
        """
        import faulthandler
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            ours = helper.installed()
            helper.set_clock(time.monotonic_ns())
            faulthandler.enable()
            assert helper.installed() != ours
            helper.set_clock(0)
            until(lambda: helper.installed() == ours)
            r.bytes[0] = 1
    """,
        preload=True,
    )


def test_faulthandler_that_was_disabled_again_does_not_keep_a_segfault_alive(run):
    run(
        f"""
        import faulthandler
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            faulthandler.enable()
            assert _native.handler_check()
            faulthandler.disable()
            _native.handler_check()
            r.bytes[0] = 1
            {SEGFAULT}
        """,
        status=-signal.SIGSEGV,
    )


def test_a_handler_that_does_nothing_does_not_keep_a_segfault_alive(run):
    run(
        f"""
        helper.install_useless()
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            {SEGFAULT}
        """,
        status=-signal.SIGSEGV,
    )


def test_faulthandler_enabled_before_and_again_after(run):
    ended = run(
        f"""
        import faulthandler
        faulthandler.enable()
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            faulthandler.disable()
            faulthandler.enable()
            _native.handler_check()
            r.bytes[0] = 1
            {SEGFAULT}
        """,
        status=-signal.SIGSEGV,
    )
    assert ended.stderr.count("Fatal Python error: Segmentation fault") == 1


@pytest.mark.parametrize("flags, block, mask", [(0, 0, 2), (0, 1, 3), (0x40000000, 0, 0)])
def test_another_handler_repairs_its_own_faults_under_its_own_mask(run, flags, block, mask):
    run(f"""
        page = helper.install_repairing({flags}, {block})
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            ctypes.c_int.from_address(page).value = 5
            assert helper.repairs() == 1 and helper.repair_mask() == {mask}
            r.bytes[0] = 1
            assert helper.repairs() == 1
    """)


def test_a_handler_for_one_time_is_called_one_time(run):
    run(
        """
        page = helper.install_repairing(0x80000000 - (1 << 32), 0)
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            ctypes.c_int.from_address(page).value = 5
            ctypes.string_at(8)
        """,
        status=-signal.SIGSEGV,
    )


def test_a_signal_that_somebody_sent_is_no_fault(run):
    run(
        """
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            os.kill(os.getpid(), signal.SIGSEGV)
            signal.pause()
        """,
        status=-signal.SIGSEGV,
    )


def test_executing_a_region_is_a_true_segfault(run):
    run(
        """
        node = Node(); r = node.region(pages=4)
        with running(node) as manager:
            ctypes.CFUNCTYPE(None)(r.address)()
        """,
        status=-signal.SIGSEGV,
    )
