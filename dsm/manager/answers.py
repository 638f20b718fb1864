"""Answers to a worker or a tool that may be longer than a datagram: they come in a memory file."""

from __future__ import annotations

import os
from collections.abc import Iterable

from dsm.errors import Status
from dsm.manager.session import Session, lack
from dsm.wire import control


def answer_in_file(session: Session, number: int, answer: control.Reply, parts: Iterable[bytes]) -> None:
    """Answer a request with `answer`, and a descriptor of a file that holds `parts`."""
    try:
        fd = os.memfd_create("dsm-answer", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.writelines(parts)
            session.answer(number, answer, (fd,))
        finally:
            os.close(fd)
    except OSError as error:
        session.fail(number, Status.LIMIT, lack(error))
