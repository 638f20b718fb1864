"""Where the secret comes from, and that every refusal names its remedy."""

import os

import pytest

from dsm.errors import UsageError
from dsm.wire.secret import MIN_SECRET_BYTES, checked_secret, load_secret, make_secret

GOOD = "0123456789abcdef0123"


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text(GOOD + "\n")
    path.chmod(0o600)
    return path


def test_made_secrets_are_accepted_and_differ():
    first, second = make_secret(), make_secret()
    assert first != second
    assert load_secret({"DSM_SECRET": first}) == first.encode()


def test_file_is_read_without_its_newline(secret_file):
    assert load_secret({"DSM_SECRET_FILE": str(secret_file)}) == GOOD.encode()


def test_the_environment_goes_before_the_file(secret_file):
    other = "another secret, long enough"
    assert load_secret({"DSM_SECRET": other, "DSM_SECRET_FILE": str(secret_file)}) == other.encode()


def test_tilde_is_the_home_directory(secret_file, monkeypatch):
    monkeypatch.setenv("HOME", str(secret_file.parent))
    assert load_secret({"DSM_SECRET_FILE": "~/secret"}) == GOOD.encode()


@pytest.mark.parametrize("environ", [{}, {"DSM_SECRET": ""}, {"DSM_SECRET_FILE": ""}])
def test_none_at_all_tells_how_to_make_one(environ):
    with pytest.raises(
        UsageError, match=r"neither DSM_SECRET nor DSM_SECRET_FILE is set; make one with `.*token_hex"
    ):
        load_secret(environ)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o644, 0o700 | 0o010])
def test_a_file_open_to_others_is_refused(secret_file, mode):
    secret_file.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}.*run `chmod 600 {secret_file}`"):
        load_secret({"DSM_SECRET_FILE": str(secret_file)})


def test_somebody_elses_file_is_refused(secret_file, monkeypatch):
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(UsageError, match=f"runs as {user}; run `sudo chown {user} {secret_file}`"):
        load_secret({"DSM_SECRET_FILE": str(secret_file)})


def test_a_missing_file_tells_how_to_make_it(tmp_path):
    with pytest.raises(UsageError, match=f"No such file.*umask 077.* > {tmp_path}/none"):
        load_secret({"DSM_SECRET_FILE": str(tmp_path / "none")})


def test_a_directory_or_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="not a regular file"):
            load_secret({"DSM_SECRET_FILE": str(path)})


@pytest.mark.parametrize("secret", ["x", "x" * (MIN_SECRET_BYTES - 1), " " * 40])
def test_a_short_secret_is_refused(secret, secret_file):
    secret_file.write_text(secret)
    for environ in ({"DSM_SECRET": secret}, {"DSM_SECRET_FILE": str(secret_file)}):
        with pytest.raises(UsageError, match=f"at least {MIN_SECRET_BYTES} are needed; make one with"):
            load_secret(environ)


def test_a_huge_file_is_refused(secret_file):
    secret_file.write_bytes(b"x" * 100_000)
    with pytest.raises(UsageError, match="longer than"):
        load_secret({"DSM_SECRET_FILE": str(secret_file)})


def test_a_secret_that_is_passed_is_that_of_a_file_with_the_same_text():
    text = "0123456789abcdef" * 2
    assert checked_secret(text + "\n", "secret=") == checked_secret(text.encode(), "secret=") == text.encode()
    for wrong in ("short", b" " * 100, "x" * 5000):
        with pytest.raises(UsageError, match="secret="):
            checked_secret(wrong, "secret=")
