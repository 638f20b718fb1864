"""``dsm report``: everything about this environment that an error report needs, and nothing private.

Owns the text and what is kept out of it: secrets never get in, and names of the host and the user, home
directories and addresses of other hosts are replaced.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import os
import platform
import re
import resource
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from dsm import __version__, config
from dsm.cli.doctor import examine
from dsm.cli.doctor.bounds import cgroup_memory
from dsm.cli.doctor.finding import mib, read
from dsm.cli.doctor.machine import userfaultfd
from dsm.cli.status import about_silent, ask
from dsm.cli.status.verdict import verdict
from dsm.cli.status.words import plural, seconds
from dsm.errors import DSMError
from dsm.wire.secret import MAX_SECRET_BYTES

#: Variables of others that change how a program with arrays runs.
_OTHERS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX", "PYTHONMALLOC")
_PRIVATE = re.compile("SECRET|TOKEN|PASS|KEY|CREDENTIAL", re.IGNORECASE)
_SYSCTLS = (
    "vm/max_map_count", "vm/overcommit_memory", "vm/overcommit_ratio", "vm/memfd_noexec", "vm/swappiness",
    "vm/unprivileged_userfaultfd", "kernel/yama/ptrace_scope", "kernel/randomize_va_space",
)  # fmt: skip
#: IPv4 addresses but those of the loopback.
_ADDRESS = re.compile(r"\b(?!127\.|0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}\b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--output", metavar="FILE", type=Path, help="write it there")


def run(options: argparse.Namespace) -> int:
    """Print or write the report."""
    text = scrub("\n".join(_report())) + "\n"
    if options.output is None:
        print(text, end="")
        return 0
    try:
        options.output.write_text(text)
    except OSError as error:
        print(f"dsm report: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"written to {options.output}; look through it before you send it")
    return 0


def _report() -> Iterator[str]:
    for title, lines in (
        ("versions", _versions),
        ("machine", _machine),
        ("limits", _limits),
        ("pager and shim", _pager),
        ("variables", _variables),
        ("doctor", _doctor),
        ("clusters of this machine", _clusters),
    ):
        yield f"[{title}]"
        yield from lines()
        yield ""


def _versions() -> Iterator[str]:
    yield f"dsm {__version__}"
    implementation = f"{platform.python_implementation()}, {platform.python_compiler()}"
    yield f"Python {platform.python_version()} ({implementation})"
    for name in ("numpy", "msgspec", "cffi"):
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name} is not installed"


def _machine() -> Iterator[str]:
    # Not uname's version nor nodename: builders put names there.
    yield f"kernel {platform.system()} {platform.release()} {platform.machine()}"
    try:
        yield f"distribution {platform.freedesktop_os_release().get('PRETTY_NAME', 'unknown')}"
    except OSError:
        yield "distribution unknown"
    yield f"libc {' '.join(platform.libc_ver()) or 'unknown'}"
    models = re.findall(r"^model name\s*:\s*(.+)$", read("/proc/cpuinfo"), re.MULTILINE)
    usable = len(os.sched_getaffinity(0))
    yield f"processors {usable} usable of {os.cpu_count()}: {models[0] if models else platform.machine()}"
    for line in read("/proc/meminfo").splitlines():
        if line.startswith(
            ("MemTotal", "MemAvailable", "SwapTotal", "Shmem:", "CommitLimit", "Committed_AS")
        ):
            yield " ".join(line.split())
    bound, used = cgroup_memory()
    yield f"control group {f'{mib(used)} of {mib(bound)}' if bound else 'without a limit of memory'}"


def _limits() -> Iterator[str]:
    for name in _SYSCTLS:
        yield f"{name.replace('/', '.')} {read('/proc/sys/' + name) or '-'}"
    for name in sorted(name for name in dir(resource) if name.startswith("RLIMIT_")):
        soft, hard = resource.getrlimit(getattr(resource, name))
        shown = ("unlimited" if each == resource.RLIM_INFINITY else str(each) for each in (soft, hard))
        yield f"{name} {' '.join(shown)}"
    yield f"shmem_enabled {read('/sys/kernel/mm/transparent_hugepage/shmem_enabled') or '-'}"


def _pager() -> Iterator[str]:
    yield "pager signals"
    yield f"userfaultfd {userfaultfd()}"
    try:
        low, high = config.address_range(os.environ)
        yield f"addresses {low:#x} to {high:#x}"
    except DSMError as error:
        yield f"addresses: {error}"
    try:
        import dsm._native._shim as shim
        from dsm import _native
    except ImportError as error:
        yield f"shim: {error}"
        return
    path = Path(shim.__file__)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    yield f"shim {path.name}, {path.stat().st_size} bytes, sha256 {digest}"
    compiled = re.search(rb"GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+", path.read_bytes())
    yield f"shim compiled by {compiled[0].decode('ascii', 'replace') if compiled else 'an unknown compiler'}"
    yield f"shim boards {_native.node_board_bytes()} and {_native.worker_board_bytes()} bytes"


def _variables() -> Iterator[str]:
    for name, value in sorted(os.environ.items()):
        if name.startswith("DSM_"):
            yield f"{name}={f'(set, {len(value)} characters, not shown)' if _PRIVATE.search(name) else value}"
        elif name in _OTHERS:
            yield f"{name}={value}"


def _doctor() -> Iterator[str]:
    for name, finding in examine():
        yield f"{finding.verdict:>4}  {name:<10} {finding.text}"


def _clusters() -> Iterator[str]:
    found = ask.look(None)
    for cluster in found.clusters:
        workers = [worker for node in cluster.nodes for worker in node.workers]
        regions = {region.region: region for node in cluster.nodes for region in node.regions}
        size = sum(region.nbytes for region in regions.values())
        oldest = max(node.uptime_s for node in cluster.nodes)
        yield (
            f"a cluster of {plural(len(cluster.nodes) + len(cluster.silent), 'node')} "
            f"(epoch {cluster.epoch}, up {seconds(oldest)}), {plural(len(workers), 'worker')}, "
            f"{plural(len(regions), 'region')} of {mib(size)}, "
            f"{sum(len(node.objects) for node in cluster.nodes)} locks, barriers and atomics"
        )
        yield from (f"  {sentence}" for sentence in verdict(cluster))
    yield from (about_silent(silent) for silent in found.silent)
    if not found.clusters and not found.silent:
        yield "none"


# -- what is kept out ------------------------------------------------------------------------------------


def scrub(text: str) -> str:
    """Return `text` without secrets, and with stand-ins for names of the user, the host and other hosts."""
    for secret in _secrets():
        text = text.replace(secret, "(secret)")
    for home in sorted({str(Path.home()), os.path.expanduser("~")}, key=len, reverse=True):
        if len(home) > 1:
            text = text.replace(home, "~")
    for name, stand_in in ((_user(), "USER"), (socket.getfqdn(), "HOST"), (socket.gethostname(), "HOST")):
        if name and name != "localhost":
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", stand_in, text)
    return _ADDRESS.sub("ADDRESS", text)


def _secrets() -> list[str]:
    """Return what must not appear, the longest first."""
    found = {value for name, value in os.environ.items() if name.startswith("DSM_") and _PRIVATE.search(name)}
    path = os.environ.get("DSM_SECRET_FILE")
    if path:
        try:
            with open(os.path.expanduser(path), "rb") as file:
                found.add(file.read(MAX_SECRET_BYTES).decode("utf-8", "replace").strip())
        except OSError:
            pass
    return sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
