"""`dsm doctor`: what it finds, the command that mends it, and its status."""

from __future__ import annotations

import builtins
import itertools
import json
import os
import resource
import socket
import subprocess
import sys

import pytest

from dsm import limits, proc
from dsm.cli import doctor
from dsm.cli.doctor import bounds, machine, settings
from dsm.cli.doctor.finding import BAD, NOTE, OK, command_in, mib


def _dsm(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "dsm", "doctor", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def _values(done):
    told = json.loads(done.stdout)
    return told["usable"], {(f["check"], f["verdict"]): f for f in told["findings"]}


def test_everything_is_looked_at_and_told_as_json_too():
    done = _dsm("--json")
    usable, found = _values(done)
    assert (done.returncode, usable) == (0, True), done.stdout
    checks = {check for check, _ in found}
    assert checks >= {
        "kernel", "processors", "pager", "compiler", "clock", "maps", "files", "addresses", "memory", "ports",
        "secret", "log", "trial",
    }  # fmt: skip
    assert not any(verdict == BAD for _, verdict in found)


def test_wrong_settings_are_named_with_what_mends_them(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s" * 40)
    secret.chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _dsm(
            "--json", "--listen", f"127.0.0.1:{port}",
            DSM_LOG="loud", DSM_PAGE_TIMEOUT="soon", DSM_SECRET_FILE=str(secret), DSM_NODE="@dsm-nobody",
        )  # fmt: skip
    usable, found = _values(done)
    assert (done.returncode, usable) == (1, False)
    assert found["log", BAD]["mend"] == "unset DSM_LOG"
    assert found["timeout", BAD]["mend"] == "unset DSM_PAGE_TIMEOUT"
    assert found["secret", BAD]["mend"] == f"chmod 600 {secret}"
    assert found["node", NOTE]["mend"] == "unset DSM_NODE"
    assert found["ports", BAD]["mend"].startswith(f"ss -ltnp 'sport = :{port}'")
    assert ("trial", OK) in found  # wrong settings of others do not hide whether it would work


def test_mending_is_printed_under_what_it_mends(tmp_path):
    done = _dsm(DSM_LOG=f"info:{tmp_path}/no/log")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = lines.index(f" BAD  log        DSM_LOG: nothing can be written in {tmp_path}/no")
    assert lines[at + 1].split() == ["mend:", "mkdir", "-p", f"{tmp_path}/no"]


@pytest.mark.parametrize(
    ("listen", "text", "mend"),
    [
        ("127.0.0.1:0", "can be listened on", ""),
        ("[::1]:0", None, ""),
        ("nonsense", "is not HOST:PORT", ""),
        ("127.0.0.1:70000", "is not HOST:PORT", ""),
        ("192.0.2.1:7000", "cannot be listened on", "ip -brief address"),
        ("no.such.name.invalid:7000", "has no address", "getent hosts no.such.name.invalid"),
    ],
)
def test_addresses_to_listen_on(listen, text, mend):
    found = list(settings.ports(listen))[-1]
    assert text is None or text in found.text
    assert found.mend.startswith(mend)
    assert (found.verdict == OK) == (text == "can be listened on") or text is None


def test_a_secret_in_the_environment_is_noted(monkeypatch):
    monkeypatch.setenv("DSM_SECRET", "s" * 40)
    [found] = settings.secret()
    assert found.verdict == NOTE and "s" * 40 not in found.text + found.mend
    monkeypatch.setenv("DSM_SECRET", "short")
    [found] = settings.secret()
    assert found.verdict == BAD and found.mend.startswith("python3 -c")


@pytest.mark.parametrize(
    ("most", "verdict"), [(1 << 20, OK), (resource.RLIM_INFINITY, OK), (500, NOTE), (40, BAD)]
)
def test_descriptors(monkeypatch, most, verdict):
    values = {resource.RLIMIT_NOFILE: (40, most), resource.RLIMIT_FSIZE: (1 << 20, 1 << 20)}
    monkeypatch.setattr(resource, "getrlimit", values.__getitem__)
    files, size = bounds.files()
    assert (files.verdict, files.mend) == (verdict, "" if verdict == OK else "ulimit -n 65536")
    assert (size.verdict, size.mend) == (NOTE, "ulimit -f unlimited")


@pytest.mark.parametrize(("count", "verdict"), [("65530", NOTE), ("1048576", OK), ("", NOTE)])
def test_memory_maps(monkeypatch, count, verdict):
    monkeypatch.setattr(bounds, "read", lambda path: count)
    [found] = bounds.maps()
    assert found.verdict == verdict
    assert found.mend == ("sudo sysctl -w vm.max_map_count=1048576" if count == "65530" else "")


def test_memory_that_is_scarce_strict_and_in_huge_pages(monkeypatch):
    said = {
        "/proc/meminfo": "MemAvailable:  1024 kB\nCommitLimit: 4096 kB\nCommitted_AS: 1024 kB",
        "/proc/sys/vm/overcommit_memory": "2",
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled": "[always] within_size never",
    }
    monkeypatch.setattr(bounds, "read", lambda path: said.get(path, ""))
    monkeypatch.setattr(bounds, "cgroup_memory", lambda: (512 << 20, 1 << 20))
    little, strict, group, huge = bounds.memory()
    assert {found.verdict for found in (little, strict, group, huge)} == {NOTE}
    assert "1 MiB are free" in little.text and "3 MiB more" in strict.text and "512 MiB" in group.text
    assert strict.mend == "sudo sysctl -w vm.overcommit_memory=0"
    assert huge.mend.startswith("echo never")


def _group(directory, **values):
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (directory / name.replace("_", ".", 1)).write_text(f"{value}\n")


def test_the_smallest_limit_of_a_control_group_counts(tmp_path):
    of = tmp_path / "cgroup"
    of.write_text("0::/a/b\n")
    root = tmp_path / "fs"
    _group(root / "a" / "b", memory_max="max", memory_current=5)
    assert bounds.cgroup_memory(str(root), str(of)) == (0, 0)
    _group(root / "a", memory_max=3 << 20, memory_current=7)
    _group(root, memory_max=9 << 20, memory_current=8)
    _group(tmp_path, memory_max=1, memory_current=1)  # above the hierarchy: nobody's
    assert bounds.cgroup_memory(str(root), str(of)) == (3 << 20, 7)


def test_control_groups_of_version_1(tmp_path):
    of = tmp_path / "cgroup"
    of.write_text("5:cpu,cpuacct:/x\n4:memory:/job\n")
    _group(tmp_path / "memory", memory_limit_in_bytes=1 << 63)
    _group(tmp_path / "memory" / "job", memory_limit_in_bytes=5 << 20, memory_usage_in_bytes=6)
    assert bounds.cgroup_memory(str(tmp_path), str(of)) == (5 << 20, 6)


def test_what_lies_among_our_addresses(monkeypatch):
    address = limits.ADDRESS_LOW + (5 << 30)
    mapped = [(1 << 22, 1 << 23, "/usr/bin/python"), (address, address + 4096, ""), (1 << 47, 1 << 48, "")]
    monkeypatch.setattr(proc, "mappings", lambda: iter(mapped))
    [taken] = [finding for finding in bounds.addresses() if finding.verdict == BAD]
    assert f"memory without a name at {address:#x} to {address + 4096:#x}" in taken.text
    low = int(taken.mend.removeprefix("export DSM_ADDRESS_LOW="), 16)
    assert low == address + limits.ADDRESS_ALIGNMENT


def test_a_limit_of_addresses(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    noted, *_ = bounds.addresses()
    assert (noted.verdict, noted.mend) == (NOTE, "ulimit -v unlimited")


def test_a_shim_that_is_not_built(monkeypatch):
    original = builtins.__import__

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "dsm" and "_native" in (fromlist or ()):
            raise ImportError("no shim")
        return original(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    [found] = machine.pager()
    assert found.verdict == BAD and found.mend.startswith("pip install")


def test_a_missing_compiler_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    found = list(machine.compiler())
    assert found[0].verdict == NOTE and found[0].mend == "sudo apt install gcc"


def test_clocks(monkeypatch):
    def ticking(step):
        ticks = itertools.count(0, step)
        monkeypatch.setattr(machine.time, "monotonic_ns", lambda: next(ticks))
        return list(machine.clock())

    monkeypatch.setattr(machine, "read", lambda path: "hpet" if "current" in path else "tsc hpet")
    assert [found.verdict for found in ticking(50)] == [OK]
    [slow] = ticking(5000)
    assert slow.verdict == NOTE and slow.mend.startswith("echo tsc | sudo tee")
    [backwards] = ticking(-1)
    assert backwards.verdict == BAD


def test_a_setting_that_dsm_refuses_is_a_finding(monkeypatch):
    monkeypatch.setenv("DSM_ADDRESS_LOW", "1")
    monkeypatch.setattr(doctor, "_trial", lambda: iter(()))
    found = [finding for name, finding in doctor.examine() if name == "addresses"]
    assert [finding.verdict for finding in found] == [BAD] and "DSM_ADDRESS_LOW" in found[0].text


def test_words():
    assert command_in("do `a b` or `c`") == "c" and command_in("nothing") == ""
    assert (mib(5 << 20), mib(20 << 30)) == ("5 MiB", "20 GiB")
