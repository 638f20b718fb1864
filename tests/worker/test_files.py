"""System calls on absent pages: they fail as the kernel says, explain themselves, and work inside a pin."""

import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import dsm
from dsm.worker import hooks

WORDS = 100_000


@pytest.fixture
def absent(node):
    """An array whose pages are elsewhere: another worker wrote them, this process has not touched them."""
    return node.array(None, WORDS, fill=3)


@pytest.fixture
def content(tmp_path):
    path = tmp_path / "content"
    np.arange(float(WORDS)).tofile(path)
    return path


def failure(function):
    with pytest.raises(OSError) as caught:
        function()
    hooks.explain(caught.value)
    hooks.explain(caught.value)
    return caught.value


def test_save_and_tofile(absent, node, tmp_path):
    path = tmp_path / "saved.npy"
    assert failure(lambda: np.save(path, absent)).__notes__ == [hooks.NOTE]
    assert failure(lambda: absent.tofile(path)).__notes__ == [hooks.NOTE]
    with node.pin(absent, write=False):
        np.save(path, absent)
    np.testing.assert_array_equal(np.load(path), np.full(WORDS, 3.0))


def test_readinto(absent, node, content):
    with open(content, "rb") as file:
        assert failure(lambda: file.readinto(absent)).__notes__ == [hooks.NOTE]
    with open(content, "rb", buffering=0) as file, node.pin(absent):
        assert file.readinto(absent) == 8 * WORDS
    assert absent[-1] == WORDS - 1


def test_a_short_count_when_only_the_first_page_is_there(absent, content):
    absent[0] = 1
    with open(content, "rb", buffering=0) as file:
        assert 0 < file.readinto(absent) < 8 * WORDS


def test_write(absent, node, tmp_path):
    with open(tmp_path / "written", "wb", buffering=0) as file:
        assert failure(lambda: file.write(absent)).__notes__ == [hooks.NOTE]
        with node.pin(absent, write=False):
            assert file.write(absent) == 8 * WORDS


def test_sockets(absent, node):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * 80)
        assert failure(lambda: ours.recv_into(absent)).__notes__ == [hooks.NOTE]
        with node.pin(absent[:10]) as part:
            assert ours.recv_into(part) == 80
        assert absent[:10].tobytes() == b"x" * 80
        sender = threading.Thread(target=lambda: theirs.sendall(bytes(8 * WORDS)))
        sender.start()
        with node.pin(absent):
            got = 0
            while got < 8 * WORDS:
                got += ours.recv_into(memoryview(absent).cast("B")[got:])
        sender.join()
    assert absent.sum() == 0


def test_fromfile_into(absent, content):
    absent[:] = np.fromfile(content)
    assert absent[-1] == WORDS - 1


def test_memory_to_memory_needs_no_pin(absent):
    import io

    buffer = io.BytesIO()
    np.save(buffer, absent)
    buffer.seek(0)
    np.testing.assert_array_equal(np.load(buffer), absent)
    assert absent.tobytes() == np.full(WORDS, 3.0).tobytes()


def test_what_nobody_catches_says_how_to_pin(run_worker, content):
    program = f"""
import dsm, threading
node = dsm.attach()
a = node.array(None, {WORDS})
def read():
    open({str(content)!r}, "rb").readinto(a)
thread = threading.Thread(target=read)
thread.start()
thread.join()
print("thread over", flush=True)
read()
"""
    result = run_worker(program)
    assert result.returncode == 1
    assert result.stderr.count("node.pin(array)") == 2
    assert result.stderr.count("Bad address") == 2


def test_other_errors_are_left_alone():
    error = FileNotFoundError(2, "No such file")
    hooks.explain(error)
    assert not hasattr(error, "__notes__")


def test_the_hooks_call_what_was_there(tmp_path):
    program = """
import sys
sys.excepthook = lambda *what: print("mine", what[0].__name__)
import dsm
with dsm.attach():
    pass
raise KeyError
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {name: value for name, value in os.environ.items() if name != "DSM_NODE"}
    result = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=30
    )
    assert result.stdout == "mine KeyError\n", result.stderr


def test_a_pin_is_used_once_at_a_time(node):
    pin = node.pin(node.array(None, 10))
    with pin, pytest.raises(dsm.UsageError, match="second"):
        pin.__enter__()
    with pin as array:
        array[:] = 1
