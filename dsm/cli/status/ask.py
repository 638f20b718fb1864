"""Finding the managers of this machine, and asking them.

Owns the connection of a conversation and the search: managers by their local sockets, in
``/proc/net/unix``, each known by the process that listens there.  A manager that is stopped is never waited
for: its state letter says it.  One that answers speaks for its whole cluster.
"""

from __future__ import annotations

import array
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from dsm.errors import AuthenticationError, DSMError, NodeLostError, PageTimeoutError, error_for
from dsm.limits import MAX_CONTROL_BYTES
from dsm.proc import descriptors, manager_sockets, process_state
from dsm.wire import control
from dsm.wire.status import STOPPED, ClusterStatus, SilentNode

#: How long a manager has to answer; it gives the others of its cluster a little less.
ANSWER_S = 3.0
_CREDENTIALS = struct.Struct("3i")
R = TypeVar("R")
_decode = msgspec.msgpack.Decoder(ClusterStatus).decode


@dataclass
class Silent:
    """A manager of this machine that gives no answer."""

    socket: str
    pid: int
    state: str
    reason: str


@dataclass
class Found:
    """What there is on this machine."""

    clusters: list[ClusterStatus] = field(default_factory=list)
    #: Managers that do not answer and belong to none of these clusters, as far as anybody knows.
    silent: list[Silent] = field(default_factory=list)


def local_name(said: str) -> str:
    """Return the local socket that a value of DSM_NODE names: that of a private node follows ``private:``."""
    return said[said.index("@") :] if "@" in said else said


def reason(error: Exception) -> str:
    """Return why a manager could not be asked."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def look(address: str | None) -> Found:
    """Return the clusters that have a manager here; with `address`, only that one's.

    Raises
    ------
    DSMError
        Nobody listens at `address`, or the manager there cannot be asked.
    """
    found = Found()
    covered: set[str] = set()
    first = [address] if address else []
    for name in itertools.chain(first, (each for each in sorted(manager_sockets()) if each != address)):
        if name in covered:
            continue
        if address and _complete(found, address):
            break
        try:
            answer = ask(name)
        except (OSError, DSMError):
            if name == address:
                raise
            continue  # gone meanwhile, or another user's
        if isinstance(answer, Silent):
            found.silent.append(answer)
        else:
            covered.update(node.socket for node in answer.nodes)
            _add(found, answer)
    _recognize(found)
    if address:
        _keep(found, address)
    return found


def _add(found: Found, answer: ClusterStatus) -> None:
    """Note a cluster; a second answer for the same one adds the nodes that the first had not heard."""
    for index, known in enumerate(found.clusters):
        if known.cluster == answer.cluster:
            nodes = {node.node: node for node in (*answer.nodes, *known.nodes)}
            silent = {node.node: node for node in (*answer.silent, *known.silent) if node.node not in nodes}
            found.clusters[index] = ClusterStatus(
                known.cluster,
                max(known.epoch, answer.epoch),
                tuple(nodes[number] for number in sorted(nodes)),
                tuple(silent[number] for number in sorted(silent)),
            )
            return
    found.clusters.append(answer)


def _complete(found: Found, address: str) -> bool:
    """Whether the cluster of `address` has answered, so that nobody else need be asked."""
    return any(
        not cluster.silent and any(node.socket == address for node in cluster.nodes)
        for cluster in found.clusters
    )


def _keep(found: Found, address: str) -> None:
    """Leave only what belongs to the cluster of `address`."""
    found.clusters = [
        cluster
        for cluster in found.clusters
        if address in {*(node.socket for node in cluster.nodes), *(node.socket for node in cluster.silent)}
    ]
    found.silent = [silent for silent in found.silent if silent.socket == address]


def ask(address: str) -> ClusterStatus | Silent:
    """Ask the manager at `address` about its cluster.

    Raises
    ------
    OSError
        Nobody listens there.
    AuthenticationError
        Who listens is not of this user.
    DSMError
        What the manager refused, or sent.
    """
    with Conversation(address) as manager:
        state = process_state(manager.pid).letter
        if state in STOPPED:
            return Silent(address, manager.pid, state, STOPPED[state])
        try:
            answer, descriptor = manager.ask(control.GetStatus(), control.Status)
        except TimeoutError:
            state = process_state(manager.pid).letter
            reason = STOPPED.get(state, f"no answer within {ANSWER_S:g} s")
            return Silent(address, manager.pid, state, reason)
    try:
        return _decode(os.pread(descriptor, answer.nbytes, 0))
    except (msgspec.MsgspecError, OSError) as error:
        raise NodeLostError(f"the manager at {address} sent what is no status: {error}") from None
    finally:
        os.close(descriptor)


class Conversation:
    """A connection to the manager at `address`, of a process that attaches to nothing.

    Raises
    ------
    OSError, DSMError
        As `ask`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            #: Process of the manager.
            self.pid = self._connect()
        except BaseException:
            self._socket.close()
            raise
        self._numbers = itertools.count(1)

    def _connect(self) -> int:
        self._socket.settimeout(ANSWER_S)
        try:
            self._socket.connect("\0" + self.address.removeprefix("@"))
        except BlockingIOError:
            # Nobody accepts, and the queue is full: whose it is cannot be asked, either.
            raise PageTimeoutError(f"the manager at {self.address} accepts no connection") from None
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid != os.geteuid():
            raise AuthenticationError(
                f"the manager at {self.address} belongs to user {uid}, this process to {os.geteuid()}"
            )
        return int(pid)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, body: control.Request, expect: type[R]) -> tuple[R, int]:
        """Return the answer and the one descriptor that comes with it, the caller's from then on.

        Raises
        ------
        TimeoutError
            There is none within `ANSWER_S`.
        DSMError
            What the manager refused, or sent.
        """
        self._socket.send(control.encode(control.Call(next(self._numbers), body)))
        received = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(
            MAX_CONTROL_BYTES, socket.CMSG_SPACE(received.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, carried in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(carried[: len(carried) - len(carried) % received.itemsize])
        try:
            answer = self._checked(data)
            if isinstance(answer, expect) and received:
                return answer, received.pop()
            raise NodeLostError(f"the manager at {self.address} answered {type(answer).__name__}")
        finally:
            for fd in received:
                os.close(fd)

    def _checked(self, data: bytes) -> control.Reply:
        if not data:
            raise NodeLostError(f"the manager at {self.address} ended")
        try:
            body = control.decode_answer(data).body
        except msgspec.MsgspecError as error:
            raise NodeLostError(f"the manager at {self.address} sent what is no answer: {error}") from None
        if isinstance(body, control.Failed):
            raise error_for(body.status, f"the manager at {self.address}: {body.message}")
        return body


# -- which silent manager is which node ------------------------------------------------------------------


def _recognize(found: Found) -> None:
    """Give silent nodes the processes of this machine that hold the other ends of their connections."""
    for index, cluster in enumerate(found.clusters):
        nodes = tuple(_with_process(node, found.silent) for node in cluster.silent)
        found.clusters[index] = msgspec.structs.replace(cluster, silent=nodes)
        known = {node.pid for node in nodes}
        found.silent = [silent for silent in found.silent if silent.pid not in known]


def _with_process(node: SilentNode, candidates: Sequence[Silent]) -> SilentNode:
    for silent in candidates:
        inode = _inode(silent.pid, node.remote, node.local)
        if inode and f"socket:[{inode}]" in descriptors(silent.pid):
            return SilentNode(node.node, node.remote, node.local, silent.pid, silent.state, silent.socket)
    return node


def _inode(pid: int, local: str, remote: str) -> str:
    """Return the inode of the TCP connection between these addresses, in that process's network."""
    if not local or not remote:
        return ""
    wanted = (_hexadecimal(local), _hexadecimal(remote))
    for name in ("tcp", "tcp6"):
        for fields in _rows(f"/proc/{pid}/net/{name}"):
            if len(fields) > 9 and (fields[1], fields[2]) == wanted:
                return fields[9]
    return ""


def _rows(path: str) -> Iterator[list[str]]:
    try:
        with open(path, encoding="ascii") as file:
            next(file, None)
            yield from (line.split() for line in file)
    except OSError:
        return


def _hexadecimal(address: str) -> str:
    """Return ``host:port`` as /proc/net/tcp writes it: words of four bytes in the machine's order."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{int(port):04X}"
