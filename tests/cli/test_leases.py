"""The verbs of leases: a server in the foreground, and everything from the shell."""

import json
import os
import signal
import subprocess
import sys

import pytest

import support
from dsm import ClosedError, NodeLostError, connect
from leasing import served

DSM = [sys.executable, "-m", "dsm"]


@pytest.fixture(scope="module")
def server():
    with served() as (_, said):
        yield said["address"]


@pytest.fixture
def dsm(server):
    def run(*words, status=0, feed=b"", environment=None):
        done = subprocess.run(
            [*DSM, *words], input=feed, capture_output=True, timeout=60,
            env=dict(os.environ, DSM_SERVER=server) | (environment or {}),
        )  # fmt: skip
        assert done.returncode == status, done.stderr.decode()
        if status:
            assert done.stderr.startswith(f"dsm {words[0]}: ".encode())
            assert done.stderr.count(b"\n") == 1, "one line"
            assert b"Traceback" not in done.stderr
            return done.stderr.decode()
        assert done.stderr == b""
        return done.stdout

    return run


@pytest.fixture
def token(dsm):
    token = dsm("lease", "1K", "60s").decode().strip()
    yield token
    dsm("release", token)


def test_a_script_leases_writes_reads_and_releases(server):
    script = f"""
        set -e
        export DSM_SERVER={server}
        dsm() {{ {sys.executable} -m dsm "$@"; }}
        id=$(dsm lease 1K 60s)
        dsm set $id hello
        echo world | dsm set $id - --offset 5
        dsm get $id --length 10; echo
        dsm renew $id 5m
        dsm leases
        dsm release $id
        dsm get $id || echo "status $?"
    """
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "helloworld"
    assert lines[1].split() == ["id", "size", "ends", "in", "age", "memory"]
    _, size, size_unit, left, left_unit, *_ = lines[2].split()
    assert (size, size_unit) == ("1", "KiB")
    assert 60 < float(left) * {"m": 60, "s": 1}[left_unit] <= 300, "it was renewed"
    assert lines[3].startswith("1 lease; 1 KiB of 64 MiB used")
    assert lines[4] == "status 3"
    assert "was released" in done.stderr


def test_lease_prints_one_token_or_all_in_json(dsm):
    out = dsm("lease", "64K", "1h")
    assert len(out) == 66 and out[32:33] == b"."
    about = json.loads(dsm("lease", "100", "250ms", "--json"))
    assert set(about) == {"token", "read_token", "id", "nbytes", "expires_in"}
    assert about["nbytes"] == 100 and 0 <= about["expires_in"] <= 0.25
    dsm("release", out.decode().strip())


def test_get_writes_bytes_as_they_are(dsm, token, tmp_path):
    data = bytes(range(256)) * 4
    dsm("set", token, "-", feed=data)
    assert dsm("get", token) == data
    assert dsm("get", token, "--offset", "1000") == data[1000:]
    assert dsm("get", token, "--offset", "0", "--length", "0") == b""
    assert dsm("get", token, "--out", str(tmp_path / "out")) == b""
    assert (tmp_path / "out").read_bytes() == data


def test_set_takes_text_a_file_and_standard_input(dsm, token, tmp_path):
    dsm("set", token, "tëxt")
    assert dsm("get", token, "--length", "5") == "tëxt".encode()
    (tmp_path / "in").write_bytes(b"file")
    dsm("set", token, "--in", str(tmp_path / "in"), "--offset", "1020")
    assert dsm("get", token, "--offset", "1020") == b"file"
    dsm("set", token, "-", "--offset", "1", feed=b"")
    assert dsm("get", token, "--length", "2") == "të".encode()[:2]
    dsm("set", token, "--offset", "2", "between")  # options may stand in front of the data
    assert dsm("get", "--length", "7", token, "--offset", "2", "--out", "-") == b"between"


def test_much_goes_through_pipes_and_files(dsm, tmp_path):
    data = os.urandom(1 << 20) * 40
    (tmp_path / "in").write_bytes(data)
    token = dsm("lease", "40M", "60s").decode().strip()
    dsm("set", token, "--in", str(tmp_path / "in"))
    assert dsm("get", token) == data
    dsm("set", token, "-", feed=data[::-1])
    dsm("get", token, "--out", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data[::-1]
    dsm("release", token)


def test_nothing_is_written_of_what_does_not_fit(dsm, token, tmp_path):
    (tmp_path / "in").write_bytes(b"x" * 1025)
    assert "do not fit" in dsm("set", token, "--in", str(tmp_path / "in"), status=2)
    assert "do not fit" in dsm("set", token, "-", feed=b"x" * 2000, status=2)
    assert "do not fit" in dsm("set", token, "xx", "--offset", "1023", status=2)
    assert "do not fit" in dsm("set", token, "", "--offset", "2K", status=2)
    assert dsm("get", token) == bytes(1024)


def test_a_table_shows_what_ends_first_and_json_all(dsm):
    late, soon = (dsm("lease", "5000", each).decode().strip() for each in ("10m", "60s"))
    lines = dsm("leases").decode().splitlines()
    assert [line[:8] for line in lines[1:3]] == [soon[:8], late[:8]]
    about = json.loads(dsm("leases", "--json"))
    assert [each["id"].replace("-", "") for each in about["leases"]] == [soon[:32], late[:32]]
    assert about["figures"]["leases"] == 2 and about["figures"]["size"] == 64 << 20
    assert late[33:] not in json.dumps(about), "keys are not told"
    for each in (late, soon):
        dsm("release", each)


def test_watch_shows_it_again_until_ctrl_c(server):
    process = subprocess.Popen(
        [*DSM, "leases", "--watch", "0.05", "--server", server], stdout=subprocess.PIPE, text=True
    )
    for _ in range(6):
        assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("get", "nonsense"), 2, "no token"),
        (("get", "0" * 32 + "." + "0" * 32), 3, "no lease has the id"),
        (("lease", "65M", "1s"), 4, "at most"),
        (("lease", "1X", "1s"), 2, "nbytes is '1X'"),
        (("lease", "0", "1s"), 2, "0 bytes"),
        (("lease", "1K", "0s"), 2, "duration is '0s'"),
        (("lease", "1K", "1s", "--server", "127.0.0.1:1"), 1, "no lease server answers"),
        (("lease", "1K", "1s", "--server", "a:b:c"), 1, "no lease server answers"),
        (("lease", "1K", "1s", "--server", "host:port"), 2, "HOST:PORT"),
        (("leases", "--timeout", "0"), 2, "timeout"),
        (("leases", "--watch", "-1"), 2, "--watch"),
        (("leases", "--secret-file", "/nowhere"), 2, "cannot be read"),
    ],
)
def test_what_is_wrong_ends_with_one_line_and_its_status(dsm, words, status, said):
    assert said in dsm(*words, status=status)


def test_files_that_cannot_be_used_are_named(dsm, token, server):
    assert "/nowhere/in: No such file" in dsm("set", token, "--in", "/nowhere/in", status=1)
    assert "/nowhere/out: No such file" in dsm("get", token, "--out", "/nowhere/out", status=1)
    assert "/: Is a directory" in dsm("set", token, "--in", "/", status=1)
    assert "/dev/full: No space left" in dsm("get", token, "--out", "/dev/full", status=1)
    for words in (("get", token), ("leases",)):
        shell = f"exec {sys.executable} -m dsm {' '.join(words)} >&-"
        environment = {**os.environ, "DSM_SERVER": server}
        done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=60, env=environment)
        said = f"dsm {words[0]}: standard output: Bad file descriptor\n"
        assert (done.returncode, done.stderr) == (1, said)
    assert "either DATA" in dsm("set", token, status=2)
    assert "do not lie in" in dsm("get", token, "--offset", "1K", "--length", "1", status=2)


def test_a_lease_that_has_ended_is_told_by_its_status(dsm):
    token = dsm("lease", "1K", "1ms").decode().strip()
    for words in (("get", token), ("set", token, "x"), ("renew", token, "1s"), ("release", token)):
        assert "ran out" in dsm(*words, status=3)


def test_the_read_token_reads_only(dsm):
    about = json.loads(dsm("lease", "1K", "60s", "--json"))
    assert dsm("get", about["read_token"], "--length", "1") == b"\0"
    for words in (("set", about["read_token"], "x"), ("renew", about["read_token"], "1s")):
        assert "write key" in dsm(*words, status=2)
    dsm("release", about["token"])


def test_a_secret_file_is_made_and_needed(tmp_path):
    secret = tmp_path / "secret"
    with served("--secret-file", str(secret)) as (_, said):
        assert secret.stat().st_mode & 0o777 == 0o600
        line = [*DSM, "leases", "--server", said["address"]]
        assert subprocess.run([*line, "--secret-file", str(secret)], timeout=60).returncode == 0
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "asks for its secret" in done.stderr
        by_variable = dict(os.environ, DSM_SECRET_FILE=str(secret))
        assert subprocess.run(line, env=by_variable, timeout=60).returncode == 0
        done = subprocess.run([*line, "--no-secret"], env=by_variable, capture_output=True, timeout=60)
        assert done.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serve_says_how_to_use_it_and_ends_when_asked(number):
    process = subprocess.Popen(
        [*DSM, "serve", "--listen", ":0", "--size", "1M"], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines[0].startswith("leasing 1 MiB at ")
    address = lines[0].split(" at ")[1].split(",")[0].strip()
    assert f"dsm lease 1K 60s --server {address}" in lines[1]
    assert "DSM_NODE=" in lines[2]
    assert str(process.pid) in lines[3]
    subprocess.run([*DSM, "lease", "1K", "60s", "--server", address], check=True, timeout=60)
    process.send_signal(number)
    assert process.wait(20) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--listen", "0.0.0.0:0"), 2, "no secret"),
        (("--listen", "nonsense:port"), 2, "HOST:PORT"),
        (("--size", "1X"), 2, "--size is '1X'"),
        (("--size", "0"), 2, "size is 0"),
        (("--secret-file", "/nowhere/secret"), 2, "cannot create"),
    ],
)
def test_serve_refuses_what_cannot_be(words, status, said):
    done = subprocess.run([*DSM, "serve", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert said in done.stderr and done.stderr.startswith("dsm serve: ")


@pytest.mark.parametrize("count", [4096, 1 << 20])
def test_serve_ends_with_its_node_and_never_answers_with_what_it_has_not(count):
    with served() as (process, said), connect(said["address"], timeout=20) as client:
        lease = client.lease(count, 60)
        lease.set(b"x" * count)
        manager = next(pid for pid in support.managers())
        os.kill(manager, signal.SIGKILL)
        with pytest.raises((NodeLostError, ClosedError)):
            while True:
                assert lease.get() == b"x" * count
        assert process.wait(20) == 1
        assert "ended" in process.stderr.read()
        assert said["node"].startswith("private:@dsm-")


def test_serve_leases_the_memory_of_a_cluster(server):
    program = """
import dsm, subprocess, sys
with dsm.attach() as node:
    lease = node.open_lease(sys.argv[1])
    print(bytes(lease.array()[:5]).decode(), flush=True)
    lease.array()[:5] = list(b"HELLO")
"""
    with served() as (_, said):
        at = dict(os.environ, DSM_SERVER=said["address"], DSM_NODE=said["node"])

        def run(*line):
            return subprocess.run(line, env=at, capture_output=True, text=True, timeout=60, check=True).stdout

        token = run(*DSM, "lease", "1K", "60s").strip()
        run(*DSM, "set", token, "hello")
        assert run(sys.executable, "-c", program, token) == "hello\n"
        assert run(*DSM, "get", token, "--length", "5") == "HELLO"


def test_starting_a_verb_costs_no_numpy():
    loaded = (
        "import sys, dsm.cli.leasing.get, dsm.cli.leasing.leases; "
        "print([name for name in ('numpy', 'cffi', 'msgspec', 'asyncio', 'dataclasses') if name in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


def test_an_answer_that_is_slow_is_given_up(tmp_path):
    with served() as (process, said):
        process.send_signal(signal.SIGSTOP)
        support.wait_until(lambda: support.state(process.pid) == "T")
        line = [*DSM, "leases", "--server", said["address"], "--timeout", "0.3"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        process.send_signal(signal.SIGCONT)
        assert done.returncode == 1 and "within 0.3 s" in done.stderr
