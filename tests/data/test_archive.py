import contextlib
import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thumbnet.data import archive as archive_module
from thumbnet.data.archive import read_members
from thumbnet.errors import DataError

WANTED = {"data/a.bin": 100, "data/b.bin": 100}
GOOD = [("data/a.bin", b"a" * 100), ("data/b.bin", b"b" * 60)]


@pytest.fixture
def write(tmp_path: Path, tgz: Callable[..., bytes]) -> Callable[..., Path]:
    def write(members: list, change: Callable[[bytes], bytes] = bytes) -> Path:
        path = tmp_path / "archive.tar.gz"
        path.write_bytes(change(tgz(members)))
        return path

    return write


def contents(path: Path) -> dict[str, bytes]:
    return {name: stream.read() for name, stream in read_members(path, WANTED)}


def header(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_named_members_are_read_and_others_passed_over(write: Callable[..., Path], tmp_path: Path):
    path = write([("readme", b"hello"), GOOD[0], ("other/a.bin", b"no"), GOOD[1]])
    assert contents(path) == dict(GOOD)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../escaped", "/tmp/thumbnet-escaped", "data/../../escaped", "data/a.bin/../x"])
def test_names_that_point_elsewhere_are_never_followed(write: Callable[..., Path], tmp_path: Path, name: str):
    path = write([(name, b"evil"), *GOOD])
    assert contents(path) == dict(GOOD)
    assert list(tmp_path.iterdir()) == [path]
    assert not (tmp_path.parent / "escaped").exists()
    assert not Path("/tmp/thumbnet-escaped").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_regular_file_is_refused(write: Callable[..., Path], kind: bytes):
    path = write([(header("data/a.bin", kind, "/etc/passwd"), b""), GOOD[1]])
    with pytest.raises(DataError, match=r"'data/a\.bin' is a link, folder or device"):
        contents(path)


def test_links_beside_the_named_members_do_nothing(write: Callable[..., Path], tmp_path: Path):
    path = write([(header("data", tarfile.SYMTYPE, "/etc"), b""), *GOOD])
    assert contents(path) == dict(GOOD)
    assert list(tmp_path.iterdir()) == [path]


def test_a_member_that_is_too_large_is_refused_before_it_is_read(write: Callable[..., Path]):
    path = write([("data/a.bin", b"a" * 101), GOOD[1]])
    with pytest.raises(DataError, match=r"'data/a\.bin' has 101 bytes, expected at most 100"):
        contents(path)


def test_a_member_that_comes_twice_is_refused(write: Callable[..., Path]):
    with pytest.raises(DataError, match=r"holds 'data/a\.bin' twice"):
        contents(write([*GOOD, ("data/a.bin", b"other")]))


def test_a_missing_member_is_named(write: Callable[..., Path]):
    with pytest.raises(DataError, match=r"does not hold 'data/b\.bin'"):
        contents(write(GOOD[:1]))


def test_an_archive_that_inflates_without_end_is_given_up(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archive_module, "INFLATED_LIMIT_BYTES", 2**20)
    path = write([("bomb", bytes(2**22)), *GOOD])
    assert path.stat().st_size < 2**14
    with pytest.raises(DataError, match=r"inflates to more than 1,048,576 bytes"):
        contents(path)


@pytest.mark.parametrize(
    "data", [b"", b"<html>no such page</html>", gzip.compress(b"not a tar", mtime=0), b"\x1f\x8b\x08\x00"]
)
def test_what_is_no_archive_is_told(tmp_path: Path, data: bytes):
    path = tmp_path / "page.tar.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"page\.tar\.gz: (not a whole \.tar\.gz archive|does not hold)"):
        contents(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_damage_anywhere_is_an_error_or_does_no_harm(write: Callable[..., Path], at: float, flip: int):
    def damage(data: bytes) -> bytes:
        place = int(at * len(data))
        if not flip:
            return data[:place]
        return data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]

    path = write([("readme", b"hello"), *GOOD], damage)
    read = dict(GOOD)
    with contextlib.suppress(DataError):
        read = contents(path)
    assert read == dict(GOOD)
