"""What the user has set: variables, the secret, addresses to listen on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dsm import config
from dsm.cli.doctor.finding import BAD, NOTE, OK, Finding, command_in
from dsm.cli.status import ask
from dsm.errors import DSMError, UsageError
from dsm.units import show_bytes
from dsm.wire.secret import load_secret


def log() -> Iterator[Finding]:
    """DSM_LOG."""
    try:
        _, path = config.log_options(os.environ)
    except UsageError as error:
        yield Finding(BAD, str(error), "unset DSM_LOG")
        return
    directory = Path(path).parent
    if path and not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(BAD, f"DSM_LOG: nothing can be written in {directory}", f"mkdir -p {directory}")
        return
    yield Finding(OK, f"DSM_LOG is {os.environ.get('DSM_LOG') or 'not set: warnings go to standard error'}")


def timeout() -> Iterator[Finding]:
    """DSM_PAGE_TIMEOUT."""
    try:
        limit = config.page_timeout(os.environ)
    except UsageError as error:
        yield Finding(BAD, str(error), "unset DSM_PAGE_TIMEOUT")
        return
    ends = f"ends with PageTimeoutError after {limit:g} s" if limit else "never ends by itself"
    yield Finding(OK, f"a wait for a page of a node that does not answer {ends} (DSM_PAGE_TIMEOUT)")


def leases() -> Iterator[Finding]:
    """DSM_LEASE_BYTES."""
    try:
        limit = config.lease_bytes(os.environ)
    except UsageError as error:
        yield Finding(BAD, str(error), "unset DSM_LEASE_BYTES")
        return
    bound = "have no bound of their own" if limit is None else f"may have {show_bytes(limit)} together"
    yield Finding(OK, f"mapped leases of a cluster {bound} (DSM_LEASE_BYTES of its first node)")


def secret() -> Iterator[Finding]:
    """The secret of a cluster."""
    path = os.environ.get("DSM_SECRET_FILE")
    if not path and not os.environ.get("DSM_SECRET"):
        yield Finding(OK, "DSM_SECRET_FILE is not set; only `dsm node` needs one")
        return
    try:
        load_secret(os.environ)
    except DSMError as error:
        yield Finding(BAD, str(error), command_in(str(error)))
        return
    if os.environ.get("DSM_SECRET"):
        yield Finding(
            NOTE,
            "the secret is in DSM_SECRET: whatever this shell starts inherits it; a file is safer "
            "(DSM_SECRET_FILE=~/.dsm-secret)",
            "(umask 077; echo $DSM_SECRET > ~/.dsm-secret); unset DSM_SECRET",
        )
    else:
        yield Finding(OK, "the secret's file is ours, and nobody else may read it")


def node() -> Iterator[Finding]:
    """DSM_NODE: is there still somebody?"""
    said = os.environ.get("DSM_NODE")
    if not said:
        return
    try:
        answer = ask.ask(ask.local_name(said))
    except (OSError, DSMError) as error:
        what = f"DSM_NODE names {said}, where no manager answers: {ask.reason(error)}"
        yield Finding(NOTE, what, "unset DSM_NODE")
        return
    if isinstance(answer, ask.Silent):
        yield Finding(
            NOTE, f"the manager that DSM_NODE names is silent: {answer.reason}", f"kill -CONT {answer.pid}"
        )
    else:
        yield Finding(OK, f"the manager that DSM_NODE names answers ({len(answer.nodes)} nodes)")


def ports(listen: str | None) -> Iterator[Finding]:
    """Whether nodes can listen: on the loopback, which `dsm run` uses, and at `listen`."""
    yield _bindable("127.0.0.1", 0, "the loopback address, which `dsm run --nodes` uses,")
    if listen is None:
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        yield Finding(BAD, f"--listen {listen} is not HOST:PORT")
        return
    yield _bindable(host.strip("[]"), int(port), f"{listen}")


def _bindable(host: str, port: int, name: str) -> Finding:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except socket.gaierror as error:
        return Finding(BAD, f"the name {host} has no address: {error.strerror}", f"getent hosts {host}")
    except OSError as error:
        mend = {
            errno.EADDRINUSE: f"ss -ltnp 'sport = :{port}'   # shows whose it is; or choose another port",
            errno.EADDRNOTAVAIL: "ip -brief address   # shows the addresses of this host",
            errno.EACCES: "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=0   # or a port from 1024 up",
        }.get(error.errno or 0, "")
        if port == 0:
            mend = "sudo ip link set lo up"
        return Finding(BAD, f"{name} cannot be listened on: {error.strerror}", mend)
    return Finding(OK, f"{name} can be listened on")
