"""Starting a private manager: what it says, what it says when it cannot, and whose child it is not."""

import os
import subprocess
import sys

import pytest

from dsm.errors import LimitError, NodeLostError, Status
from dsm.worker import startup


def manager(monkeypatch, program):
    start = "import os, sys, json; fd = int(sys.argv[-1]); whole = {'node': 0, 'listen': None}; "
    say = "say = lambda **line: os.write(fd, json.dumps(whole | line).encode() + b'\\n'); "
    monkeypatch.setattr(startup, "MANAGER", ("-c", start + say + program))


def test_its_address_is_what_it_wrote(monkeypatch):
    manager(monkeypatch, "say(socket='@dsm-1')")
    assert startup.start_private() == "@dsm-1"


def test_it_is_no_child_of_this_process(monkeypatch):
    manager(monkeypatch, "say(socket=f'@{os.getpid()} {os.getsid(0)}')")
    process, session = startup.start_private().removeprefix("@").split()
    assert int(session) != os.getsid(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(int(process), os.WNOHANG)


def test_its_own_error_has_its_class(monkeypatch):
    manager(
        monkeypatch, f"os.write(fd, json.dumps({{'error': 'too many', 'status': {Status.LIMIT:d}}}).encode())"
    )
    with pytest.raises(LimitError, match="too many"):
        startup.start_private()


def test_what_it_wrote_to_stderr_is_in_the_message(monkeypatch):
    manager(monkeypatch, "sys.exit('no memory for this')")
    with pytest.raises(NodeLostError, match="no memory for this"):
        startup.start_private()


def test_a_manager_that_is_never_ready_is_given_up(monkeypatch):
    monkeypatch.setattr(startup, "START_TIMEOUT_S", 0.2)
    until = "import select; poll = select.poll(); poll.register(fd, 0); poll.poll()"  # nobody reads any more
    manager(monkeypatch, until)
    with pytest.raises(NodeLostError, match="not ready within"):
        startup.start_private()


def test_the_working_directory_shadows_no_module(monkeypatch, tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')")
    monkeypatch.chdir(tmp_path)
    line = '{"node": 0, "socket": "@dsm-2", "listen": null}'
    program = f"import os, queue, sys; os.write(int(sys.argv[-1]), {line.encode()!r})"
    monkeypatch.setattr(startup, "MANAGER", ("-P", "-c", program))
    assert startup.start_private() == "@dsm-2"


def test_a_program_may_have_a_queue_of_its_own_beside_it(tmp_path):
    (tmp_path / "queue.py").write_text("raise ImportError('this is the program\\'s own')\n")
    (tmp_path / "program.py").write_text(
        "import sys\nimport dsm\n"
        "with dsm.attach() as node:\n"
        "    node.array('a', 8)[:] = 1\n"
        "    with node.lease(64, 60) as lease:\n"
        "        lease.set(b'x')\n"
        "print('queue' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, timeout=60, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
