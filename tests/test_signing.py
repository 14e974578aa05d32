"""The key that tells what scalekit wrote itself from what somebody else put there."""

import os
from pathlib import Path

import pytest
from faults import run_together

from scalekit import signing
from scalekit.signing import UnusableKey, find_key_file, is_signed, sign


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A user who has no key yet"
    for name in ("XDG_STATE_HOME", "SCALEKIT_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    signing._key.cache_clear()
    yield tmp_path
    signing._key.cache_clear()


def test_the_key_is_where_a_program_keeps_its_state(home, monkeypatch):
    assert find_key_file() == home / ".local/state/scalekit/key"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert find_key_file() == home / ".local/state/scalekit/key"
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    assert find_key_file() == home / "state/scalekit/key"
    monkeypatch.setenv("SCALEKIT_KEY_FILE", "~/team.key")
    assert find_key_file() == home / "team.key"


def test_only_its_owner_can_read_it_whatever_the_umask_is(home):
    before = os.umask(0)
    try:
        sign(b"a")
    finally:
        os.umask(before)
    assert find_key_file().stat().st_mode & 0o777 == 0o600
    assert find_key_file().parent.stat().st_mode & 0o777 == 0o700
    assert len(find_key_file().read_bytes()) == 32


def _sign_aside(folder: Path, number: int) -> None:
    (folder / str(number)).write_text(sign(b"a"))


def test_processes_that_make_it_at_once_end_with_the_same_key(home):
    assert run_together(_sign_aside, [(home, number) for number in range(12)]) == [0] * 12
    assert len({(home / str(number)).read_text() for number in range(12)}) == 1
    assert os.listdir(find_key_file().parent) == ["key"]


def test_it_is_read_once_in_a_process(home):
    signature = sign(b"a")
    find_key_file().unlink()
    assert is_signed(b"a", signature)


def test_another_user_s_signature_is_none(home, monkeypatch):
    signature = sign(b"a")
    monkeypatch.setenv("HOME", str(home / "other"))
    assert not is_signed(b"a", signature)


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [(b"x" * 32, 0o640, "got mode 040. Do: chmod 600"), (b"x" * 31, 0o600, "at least 32 bytes, got 31")],
)
def test_a_key_that_is_no_secret_signs_nothing_and_is_never_shown(home, content, mode, says):
    find_key_file().parent.mkdir(parents=True)
    find_key_file().write_bytes(content)
    find_key_file().chmod(mode)
    with pytest.raises(UnusableKey, match=says) as caught:
        sign(b"a")
    assert "xxx" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(home):
    find_key_file().parent.mkdir(parents=True)
    find_key_file().write_bytes(b"x" * 32)
    find_key_file().chmod(0o600)
    os.chown(find_key_file(), 12345, 12345)
    with pytest.raises(UnusableKey, match="it belongs to 12345"):
        sign(b"a")


def test_a_folder_in_its_place_is_one_sentence(home):
    find_key_file().mkdir(parents=True)
    with pytest.raises(UnusableKey, match="can't be read or made: Is a directory. Name another file"):
        sign(b"a")
