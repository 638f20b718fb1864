"""`dsm run` on a terminal: prefixes, prompts, keyboard input, Ctrl-C and Ctrl-Z as the keys they are."""

import fcntl
import os
import pty
import signal
import termios

import pytest

import support


class Terminal:
    """A pseudo-terminal whose controlling session is that of the launcher."""

    def __init__(self):
        self.ours, self.theirs = pty.openpty()
        os.set_blocking(self.ours, False)
        self._shown = b""

    @property
    def shown(self):
        try:
            while piece := os.read(self.ours, 65536):
                self._shown += piece
        except OSError:  # nothing there, or the other side is closed
            pass
        return self._shown.decode().replace("\r\n", "\n")

    def wait_shown(self, text, count=1):
        support.wait_until(lambda: self.shown.count(text) >= count, what=f"{text!r} in {self._shown!r}")

    def type(self, keys):
        os.write(self.ours, keys)

    def become_controlling(self):
        """Between fork and exec: a session of its own with this terminal."""
        os.setsid()
        fcntl.ioctl(self.theirs, termios.TIOCSCTTY, 0)

    def close(self):
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def on_terminal(launch, terminal):
    def start(*arguments, **options):
        fd = terminal.theirs
        return launch(
            *arguments, stdin=fd, stdout=fd, stderr=fd, preexec_fn=terminal.become_controlling, **options
        )

    return start


def test_lines_carry_their_rank(on_terminal, terminal):
    run = on_terminal("-n", 3, program="print('one\\ntwo')")
    assert run.status() == 0
    lines = terminal.shown.splitlines()
    assert sorted(lines) == [f"[{rank}] {word}" for rank in range(3) for word in ("one", "two")]


def test_a_prompt_is_shown_and_its_answer_arrives(on_terminal, terminal):
    run = on_terminal("-n", 2, program="if rank == 0: print('hello', input('name? '))")
    terminal.wait_shown("[0] name? ")
    terminal.type(b"ada\n")
    assert run.status() == 0
    assert "hello ada" in terminal.shown


def test_an_unfinished_line_of_one_rank_is_not_continued_by_another(on_terminal, terminal, tmp_path):
    run = on_terminal(
        "-n",
        2,
        program="""
        if rank == 0:
            print("unfinished", end="", flush=True)
            wait()
        while not os.path.exists("go"):
            time.sleep(0.005)
        print("whole", file=sys.stderr)
        wait()
        """,
    )
    terminal.wait_shown("[0] unfinished")
    (tmp_path / "go").touch()
    terminal.wait_shown("whole")
    assert terminal.shown == "[0] unfinished\n[1] whole\n"
    run.process.terminate()
    run.status()


def test_end_of_input_reaches_rank_0(on_terminal, terminal):
    run = on_terminal("-n", 2, program="if rank == 0: print(repr(sys.stdin.read()))")
    terminal.type(b"text\n\x04")
    assert run.status() == 0
    assert "[0] 'text\\n'" in terminal.shown


def test_ctrl_c_on_the_keyboard(on_terminal, terminal):
    run = on_terminal("-n", 2, program="print('here'); wait()")
    terminal.wait_shown("here", 2)
    terminal.type(b"\x03")
    assert run.status() == 130
    assert terminal.shown.count("KeyboardInterrupt") == 2


def test_a_worker_cannot_be_stopped_by_the_terminal(on_terminal, terminal):
    run = on_terminal("-n", 1, program="open('/dev/tty').read()")
    assert run.status() == 1
    assert "No such device" in terminal.shown


def test_ctrl_z_stops_everything(launch):
    """In the session of the tests, whose shell has another group: SIGTSTP works as from the keyboard."""
    run = launch("-n", 2, program="print('here'); wait()", process_group=0)
    run.wait_printed("here", 2)
    family = support.family()
    run.process.send_signal(signal.SIGTSTP)
    support.wait_until(lambda: all(support.state(pid) == "T" for pid in family), what="all are stopped")
    run.process.send_signal(signal.SIGCONT)
    support.wait_until(lambda: all(support.state(pid) != "T" for pid in family), what="all go on")
    run.process.terminate()
    assert run.status() == 128 + signal.SIGTERM
