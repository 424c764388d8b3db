import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from thumbnet.errors import UsageError
from thumbnet.files import (
    clear_leftovers,
    expand_home,
    read_regular_file,
    remedy,
    replace_file,
    sync,
    write_error,
    write_new_file,
)


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
    replace_file(path, [b"one"])
    replace_file(path, [b"two"])
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_of_two_writers_at_once_the_last_wins(tmp_path):
    path = tmp_path / "a"

    def pieces() -> Iterator[bytes]:
        yield b"the first "
        replace_file(path, [b"the second"])
        assert path.read_bytes() == b"the second"
        yield b"writer"

    replace_file(path, pieces())
    assert path.read_bytes() == b"the first writer"
    assert names(tmp_path) == ["a"]


def test_what_a_kill_has_left_is_deleted_once_nobody_can_be_writing_it(tmp_path):
    mine, fresh, stranger = ".tmp-a-0123abcd", ".tmp-a-4567abcd", ".tmp-a-backup"
    for name in (mine, fresh, stranger, ".tmp-b-0123abcd"):
        (tmp_path / name).write_bytes(b"half")
    for name in (mine, stranger, ".tmp-b-0123abcd"):
        os.utime(tmp_path / name, (0, 0))
    replace_file(tmp_path / "a", [b"whole"])
    assert names(tmp_path) == [fresh, stranger, ".tmp-b-0123abcd", "a"]
    clear_leftovers(tmp_path)  # as one who has the lock of the folder does
    assert names(tmp_path) == [stranger, "a"]


def test_the_home_of_a_user_or_what_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand_home(Path("~/data")) == Path.home() / "data"
    assert expand_home(Path("data/~")) == Path("data/~")
    with pytest.raises(UsageError, match=r"^~no-such-user/data: there is no user whose home is ~no-such-user: "):
        expand_home(Path("~no-such-user/data"))
    (tmp_path / "~no-such-user").mkdir()
    assert expand_home(Path("~no-such-user/data")) == Path("~no-such-user/data")


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
