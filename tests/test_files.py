"""A file is written whole, or is what it was."""

import errno
import os
from pathlib import Path

import pytest

from rfcalc.files import write_whole


def test_a_new_file_and_an_old_one(tmp_path):
    file = tmp_path / "a.txt"
    for content in (b"one", b"", b"two" * 100_000):
        write_whole(file, content)
        assert file.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_stay(tmp_path):
    file = tmp_path / "run.sh"
    file.write_bytes(b"old")
    file.chmod(0o751)
    write_whole(file, b"new")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o751)


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "shutil.copymode"])
def test_what_fails_leaves_what_was_there(tmp_path, monkeypatch, step):
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_do_not_share_what_is_half_written(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda part, path: (seen.append(Path(part).name), replace(part, path)))
    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        write_whole(tmp_path / "a.txt", b"new")
    assert seen == [".a.txt.1.part", ".a.txt.2.part"]
