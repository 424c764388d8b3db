import os
from dataclasses import replace
from pathlib import Path

import pytest

from thumbnet.data.verify import MARKER, check_files, missing_files


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    return tiny.put_files(tmp_path)


def problems(tiny, folder: Path, *, rehash: bool = True) -> list[str | None]:
    return [report.problem for report in check_files(tiny.dataset, folder, rehash=rehash)]


def change(path: Path, at: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


def test_files_as_published_have_no_problem(tiny, folder: Path):
    reports = check_files(tiny.dataset, folder)
    assert [(report.path, report.records, report.problem) for report in reports] == [
        (folder / name, 20, None) for name in ("one.bin", "two.bin", "test.bin")
    ]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 bytes, expected 980 (20 records): ends in record 0 after 0 of its 49 bytes"),
        (100, "100 bytes, expected 980 (20 records): ends in record 2 after 2 of its 49 bytes"),
        (979, "979 bytes, expected 980 (20 records): ends in record 19 after 48 of its 49 bytes"),
        (981, "981 bytes, expected 980 (20 records): goes on after its last record, 19"),
    ],
)
def test_a_short_or_long_file_is_told_with_the_record(tiny, folder: Path, size: int, told: str):
    path = folder / "two.bin"
    path.write_bytes((path.read_bytes() + b"x")[:size])
    assert problems(tiny, folder) == [None, f"{path}: {told}", None]


def test_a_missing_file_is_told(tiny, folder: Path):
    (folder / "test.bin").unlink()
    assert missing_files(tiny.dataset, folder) == ["test.bin"]
    assert problems(tiny, folder) == [None, None, f"{folder / 'test.bin'}: No such file or directory"]


def test_a_folder_in_place_of_a_file_is_told(tiny, folder: Path):
    (folder / "test.bin").unlink()
    (folder / "test.bin").mkdir()
    assert problems(tiny, folder)[2] == f"{folder / 'test.bin'}: is a folder, not a file of records"


def test_a_label_out_of_range_is_told_with_record_and_offset(tiny, folder: Path):
    change(folder / "one.bin", 3 * 49, b"\x04")
    expected = f"{folder / 'one.bin'}: record 3 (byte offset 147) has label 4, expected 0 to 3"
    assert problems(tiny, folder)[0] == expected
    change(folder / "one.bin", 9 * 49, b"\xff")
    assert problems(tiny, folder)[0] == f"{expected}; 1 more records are bad"


def test_of_two_label_bytes_the_offset_is_that_of_the_second(tiny, folder: Path):
    layout = replace(tiny.dataset.layout, label_bytes=2)
    dataset = replace(tiny.dataset, layout=layout)
    for file in dataset.files:
        data = bytes([0, 1, *([7] * 48)]) * 19 + bytes([0, 9, *([7] * 48)])
        (folder / file.name).write_bytes(data)
    expected = f"{folder / 'one.bin'}: record 19 (byte offset 951) has label 9, expected 0 to 3"
    assert check_files(dataset, folder)[0].problem == expected


def test_an_empty_record_is_told(tiny, folder: Path):
    change(folder / "one.bin", 5 * 49, bytes(49))
    expected = f"{folder / 'one.bin'}: record 5 (byte offset 245) is empty, nothing but zeros"
    assert problems(tiny, folder)[0] == expected


def test_a_changed_pixel_is_told_by_the_hash(tiny, folder: Path):
    path = folder / "two.bin"
    change(path, 500, bytes([path.read_bytes()[500] ^ 1]))
    assert str(problems(tiny, folder)[1]).startswith(f"{path}: SHA256 is not {tiny.dataset.train[1].digest[7:]}")


def test_md5_serves_where_only_that_was_published(tiny, folder: Path):
    import hashlib

    digest = "md5:" + hashlib.md5(tiny.files["test.bin"]).hexdigest()
    dataset = replace(tiny.dataset, test=(replace(tiny.dataset.test[0], digest=digest),))
    assert [report.problem for report in check_files(dataset, folder)] == [None] * 3
    change(folder / "test.bin", 500, b"\x00\x01")
    assert "MD5 is not" in str(check_files(dataset, folder)[2].problem)


def unseen_change(path: Path) -> None:
    """Change a pixel, but neither size nor time of last change."""
    status = path.stat()
    change(path, 500, bytes([path.read_bytes()[500] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_is_hashed_once_until_it_changes(tiny, folder: Path):
    assert problems(tiny, folder, rehash=False) == [None] * 3
    unseen_change(folder / "one.bin")
    assert problems(tiny, folder, rehash=False) == [None] * 3  # this is what not hashing again means
    os.utime(folder / "one.bin")
    assert problems(tiny, folder, rehash=False)[0] is not None
    assert problems(tiny, folder, rehash=False)[0] is not None


def test_verifying_never_believes_the_marker(tiny, folder: Path):
    assert problems(tiny, folder) == [None] * 3
    unseen_change(folder / "one.bin")
    assert problems(tiny, folder)[0] is not None
    assert problems(tiny, folder, rehash=False)[0] is not None  # and the mark is gone


def test_marks_of_other_files_in_the_folder_stay(tiny, folder: Path):
    assert problems(tiny, folder, rehash=False) == [None] * 3
    part = replace(tiny.dataset, train=tiny.dataset.train[:1], test=())
    for rehash in (False, True):
        assert [report.problem for report in check_files(part, folder, rehash=rehash)] == [None]
    unseen_change(folder / "two.bin")
    assert problems(tiny, folder, rehash=False) == [None] * 3  # not hashed again


def test_a_mark_counts_for_this_hash_only(tiny, folder: Path):
    assert problems(tiny, folder) == [None] * 3
    other = replace(tiny.dataset.train[0], digest="sha256:" + "0" * 64)
    dataset = replace(tiny.dataset, train=(other, tiny.dataset.train[1]))
    assert check_files(dataset, folder)[0].problem is not None


@pytest.mark.parametrize("text", ["", "[]", "null", '{"one.bin": 7}', "{", "\x00"])
def test_a_damaged_marker_means_hashing_again(tiny, folder: Path, text: str):
    (folder / MARKER).write_text(text)
    assert problems(tiny, folder, rehash=False) == [None] * 3


def test_progress_counts_every_byte_hashed_or_not(tiny, folder: Path):
    for rehash in (True, False):
        seen: list[int] = []
        check_files(tiny.dataset, folder, rehash=rehash, tick=seen.append)
        assert sum(seen) == 3 * 980
