import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from thumbnet.files import read_regular_file, remedy, replace_file, sync, write_error, write_new_file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_file_is_written_whole_even_in_parts(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_new_file(tmp_path / "a", [b"01234", memoryview(b"56789")])
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    with pytest.raises(FileExistsError):
        write_new_file(tmp_path / "a", [])


def test_replace(tmp_path):
    path = tmp_path / "a"
    (tmp_path / ".tmp-a").write_bytes(b"left by a kill")
    replace_file(path, [b"one"])
    replace_file(path, [b"two"])
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_a_failed_replace_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a"
    replace_file(path, [b"old"])

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace_file(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_reading_is_bounded_and_never_blocks(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular_file(path, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, expected at most 4"):
        read_regular_file(path, 4)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular_file(tmp_path / name, 100)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "b", 100)


def test_a_replace_whose_pieces_end_in_an_error_keeps_the_old_content(tmp_path):
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("damaged")

    path = tmp_path / "a"
    replace_file(path, [b"old"])
    with pytest.raises(ValueError, match="damaged"):
        replace_file(path, pieces())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_sync_takes_files_and_folders(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    sync(tmp_path / "file")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "writable"),
        (errno.EIO, "check"),
    ],
)
def test_remedy(number, text):
    assert text in remedy(OSError(number, "x"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_the_flag_that_chooses_another_folder(number, tmp_path):
    error = OSError(number, "refused")
    assert remedy(error).endswith("choose another with --out")
    told = write_error(tmp_path, error, flag="--eval-dir")
    assert str(told).startswith(f"{tmp_path}: cannot write: [Errno {number}] refused\nTo go on: ")
    assert str(told).endswith("choose another with --eval-dir")
    assert told.exit_code == 1
