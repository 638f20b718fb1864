"""What this machine does at best without dsm, measured in the same run.

Owns the floors: a request and its reply between two C programs over blocking loopback TCP, a bare
SIGSEGV with `mprotect`, one TCP stream into fresh memory.  The two ends are processes, placed as the
row's processes are.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import socket
import statistics
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from dsm import _native

_CONTEXT = multiprocessing.get_context("spawn")


def listen() -> socket.socket:
    """Return a socket that listens on loopback."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(4)
    return listener


def connect(port: int) -> socket.socket:
    """Return a connection to that port on loopback."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Pair:
    """Two C processes that ask and answer; a context manager.

    Parameters
    ----------
    request, reply : int
        Bytes of a request and of its reply.
    cpus : set of int or None
        Processors of both.
    """

    def __init__(self, request: int, reply: int, cpus: set[int] | None) -> None:
        self._pipe, asker = _CONTEXT.Pipe()
        port_pipe, answerer = _CONTEXT.Pipe()
        self._answerer = _CONTEXT.Process(target=_answer, args=(answerer, request, reply, cpus), daemon=True)
        self._answerer.start()
        answerer.close()
        port: int = port_pipe.recv()
        self._asker = _CONTEXT.Process(target=_ask, args=(asker, port, request, reply, cpus), daemon=True)
        self._asker.start()
        asker.close()

    def samples(self, count: int) -> list[int]:
        """Return the nanoseconds of `count` requests."""
        self._pipe.send(count)
        samples: list[int] = self._pipe.recv()
        return samples

    def p50_us(self, count: int = 2000) -> float:
        """Return the median in microseconds."""
        return statistics.median(self.samples(count)) / 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.send(0)
        self._asker.join(5)
        self._answerer.join(5)


def _place(cpus: set[int] | None) -> None:
    if cpus is not None:
        os.sched_setaffinity(0, cpus)


def _answer(pipe: Connection, request: int, reply: int, cpus: set[int] | None) -> None:
    _place(cpus)
    listener = listen()
    pipe.send(listener.getsockname()[1])
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _native.probe_answer(sock.fileno(), request, reply)


def _ask(pipe: Connection, port: int, request: int, reply: int, cpus: set[int] | None) -> None:
    _place(cpus)
    sock = connect(port)
    while count := pipe.recv():
        pipe.send(_native.probe_ask(sock.fileno(), count, request, reply))


def bare_fault_us(count: int = 2000) -> float:
    """Return the median microseconds of SIGSEGV + mprotect + return, nothing else (in its own process)."""
    pipe, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_fault, args=(theirs, count), daemon=True)
    process.start()
    samples: list[int] = pipe.recv()
    process.join(5)
    return statistics.median(samples) / 1000


def _fault(pipe: Connection, count: int) -> None:
    pipe.send(_native.probe_fault(count))


class Stream:
    """A process that sends, on demand, so many bytes over one TCP connection; a context manager."""

    def __init__(self, nbytes: int, cpus: set[int] | None) -> None:
        self._nbytes = nbytes
        pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_stream, args=(theirs, nbytes, cpus), daemon=True)
        self._process.start()
        self._sock = connect(pipe.recv())

    def seconds(self) -> float:
        """Return the time that the bytes take into memory that was never touched."""
        memory = mmap.mmap(-1, self._nbytes)
        view = memoryview(memory)
        start = time.perf_counter()
        self._sock.sendall(b"g")
        at = 0
        while at < self._nbytes:
            at += self._sock.recv_into(view[at : at + (1 << 20)])
        elapsed = time.perf_counter() - start
        view.release()
        memory.close()
        return elapsed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()
        self._process.join(5)


def _stream(pipe: Connection, nbytes: int, cpus: set[int] | None) -> None:
    _place(cpus)
    listener = listen()
    pipe.send(listener.getsockname()[1])
    sock, _ = listener.accept()
    data = memoryview(bytearray(b"\1") * nbytes)
    while sock.recv(1):
        sock.sendall(data)
