"""Which words accuse a peer, and which are printed again."""

import pytest

from dsm.launch.verdict import accuses_a_peer, last_words

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'


@pytest.mark.parametrize(
    ("last", "accuses"),
    [
        ("dsm.errors.BrokenBarrierError: rank 1 left", True),
        ("dsm.errors.NodeLostError", True),
        ("dsm.PageLostError: page 3", True),
        ("dsm.errors.UsageError: no such array", False),
        ("ValueError: dsm.errors.BrokenBarrierError: quoted", False),
        ("KeyboardInterrupt", False),
    ],
)
def test_peer_errors_accuse(last, accuses):
    assert accuses_a_peer((TRACEBACK + last + "\n").encode()) is accuses


def test_silence_accuses_nobody():
    assert not accuses_a_peer(b"")


def test_last_words_begin_with_the_first_traceback():
    chained = TRACEBACK + "KeyError: 1\n\nDuring handling ...\n\n" + TRACEBACK + "ValueError: 2\n"
    assert last_words(b"a warning\n" + chained.encode()) == chained.rstrip()


def test_last_words_without_a_traceback_are_the_last_lines():
    text = "\n".join(f"line {n}" for n in range(500))
    assert last_words(text.encode()).splitlines() == [f"line {n}" for n in range(400, 500)]
