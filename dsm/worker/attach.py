"""Attaching this process to a node: the one `Node` of a process, and what keeps it right.

Owns the environment variable DSM_NODE, the node of this process, its end with the interpreter and its
renewal in a child of fork.  A process that ends by an exception that nobody caught does not leave its node,
it fails: others may wait for it at a barrier.

===================  ==========================================================================
DSM_NODE             what `attach` does
===================  ==========================================================================
not set              starts a private manager and sets ``private:@dsm-…``, so that children join
``private:@dsm-…``   joins it; when it has ended (with its last worker), starts another
``@dsm-…``           joins it (`dsm run` set it); when it has ended: `NodeLostError`
===================  ==========================================================================
"""

from __future__ import annotations

import atexit
import os
import sys
from multiprocessing import process, util

from dsm.errors import DSMError, LimitError, NodeLostError, UsageError
from dsm.worker import awaited, hooks, lacking, reference, regions, startup
from dsm.worker.connection import Connection
from dsm.worker.node import Node
from dsm.worker.raising import Raiser

#: Of multiprocessing's finalizers: after all others.
_LAST = -1000

#: Guards the next four; renewed in a child of fork.
_lock = awaited.Lock()
_attaching = False
_node: Node | None = None
_raiser: Raiser | None = None
_prepared = False
#: This process is ending because of an exception; multiprocessing forgets that before `atexit` runs.
_failed = False


def attach() -> Node:
    """Attach this process to its node and return it; the same object until it is closed.

    Inside a program started by ``dsm run`` (or with DSM_NODE set) the process joins that node.  Otherwise
    a private node is started, which ends with its last worker; DSM_NODE is then set in this process's
    environment, so that children (multiprocessing, subprocess, joblib) join it.  A child of fork is
    attached by itself, its arrays stay valid.

    Returns
    -------
    Node
        Also a context manager, which closes it.

    Raises
    ------
    NodeLostError
        When DSM_NODE names a node whose manager has ended, or a private manager did not start.
    UsageError
        When DSM_NODE or DSM_RANK is malformed.
    AuthenticationError
        When the manager belongs to another user.
    LimitError
        When this process, or the node, has too little of something; the message names it.

    Examples
    --------
    >>> import dsm
    >>> with dsm.attach() as node:
    ...     a = node.array("grid", (1024, 1024), "f8")
    ...     a[0] = 1.0
    """
    global _node, _attaching
    node = current_node()
    if node is not None and not node.lost:
        return node
    with _lock:
        if _attaching:
            raise UsageError(
                "a signal handler or a finalizer called dsm.attach() in the middle of another; attach before "
                "handlers come"
            )
        try:
            _attaching = True
            if _node is not None and _node.lost:
                _node.close()
            if _node is None or _node.closed:
                _prepare()
                _node = Node(_join(_current_raiser()))
            return _node
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, DSMError) or not lacking.is_lack(error):
                raise
            raise LimitError(f"this process cannot attach: {error!r}: {lacking.reason(error)}") from None
        finally:
            _attaching = False


def attach_to(cluster: str, what: str) -> Node:
    """Attach as `attach` does, for something of that cluster that this process was sent.

    Raises
    ------
    UsageError
        This process is attached to another cluster.
    """
    node = attach()
    if node.cluster != cluster:
        raise UsageError(
            f"{what} of cluster {cluster}, but this process is attached to {node.cluster}; start this one "
            "with the DSM_NODE of the process that made it"
        )
    return node


def current_node() -> Node | None:
    """Return the open node of this process, if it has one."""
    node = _node
    return None if node is None or node.closed else node


def _prepare() -> None:
    """Install once what outlives a node."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    hooks.install()
    reference.install()
    atexit.register(_close_at_exit)
    os.register_at_fork(after_in_child=_after_fork)
    util.register_after_fork(_announce_end, _announce_at_end)
    _announce_at_end()


def _current_raiser() -> Raiser:
    global _raiser
    if _raiser is None:
        _raiser = Raiser(regions.label, regions.name_of, regions.is_lease)
    return _raiser


def _join(raiser: Raiser) -> Connection:
    said = os.environ.get("DSM_NODE")
    if said:
        private, address = _parse(said)
        try:
            return Connection(address, None if private else _rank(), raiser)
        except (ConnectionError, FileNotFoundError) as error:  # NodeLostError is a ConnectionError
            if not private:
                raise NodeLostError(
                    f"no manager answers at DSM_NODE={said} ({error}): its job has ended; "
                    "start the program with `dsm run`, or unset DSM_NODE for a private node"
                ) from None
    address = startup.start_private()
    os.environ["DSM_NODE"] = f"private:{address}"
    return Connection(address, None, raiser)


def _parse(said: str) -> tuple[bool, str]:
    private, address = said.startswith("private:"), said.removeprefix("private:")
    if not address.startswith("@") or len(address) < 2:
        raise UsageError(f"DSM_NODE is {said!r}; it must look like '@dsm-…' or 'private:@dsm-…', or be unset")
    return private, address


def _rank() -> int | None:
    said = os.environ.get("DSM_RANK")
    if not said:
        return None
    if not said.isdecimal():
        raise UsageError(f"DSM_RANK is {said!r}; it must be a number from 0 up, or unset")
    return int(said)


def _close_at_exit() -> None:
    node = current_node()
    if node is not None:
        node._close(_is_failing())


def _is_failing() -> bool:
    """Whether this process ends by an exception that nobody caught (other than SystemExit)."""
    global _failed
    kind = sys.exc_info()[0]  # of a function that multiprocessing runs, which handles the exception later
    if kind is not None:
        _failed = not issubclass(kind, SystemExit)
    return _failed or (hasattr(sys, "last_value") and not hasattr(sys, "ps1"))


def _announce_end() -> None:
    node = current_node()
    if node is not None and not _is_failing():
        node._connection.announce_end()


def _announce_at_end(_: object = None) -> None:
    """In a child of multiprocessing, which may end without what `atexit` runs: announce its end."""
    if process.parent_process() is not None:
        util.Finalize(None, _announce_end, exitpriority=_LAST)


def _after_fork() -> None:
    """Attach a child of fork anew: its own worker, the same regions at the same addresses."""
    global _lock, _attaching
    _lock, _attaching = awaited.Lock(), False
    if _raiser is not None:
        _raiser.renew()
    node = current_node()
    if node is None or _raiser is None:
        return
    try:
        node._renew(_raiser)
    except Exception as error:
        _raiser.poll()
        print(f"dsm: child {os.getpid()} of fork could not attach to {node!r}: {error}", file=sys.stderr)
