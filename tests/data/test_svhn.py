import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from thumbnet.cli.main import main
from thumbnet.config import DataConfig
from thumbnet.data import known_class_names, load_splits, svhn, verify
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.description import Archive, Limits
from thumbnet.data.svhn import CLASS_NAMES, DigitSet, MatFile, digit_sets, find_or_convert, load_svhn, read_mat
from thumbnet.errors import DataError

COUNTS = {"train": 30, "test": 12, "extra": 25}
LIMITS = Limits(timeout_s=0.3)
NOWHERE = "http://127.0.0.1:9"  # the discard port: refuses at once


@dataclass
class Digits:
    """Files in the form of the published ones, in miniature."""

    folder: Path
    images: dict[str, np.ndarray]
    digits: dict[str, np.ndarray]
    files: dict[str, MatFile]

    def named(self, name: str = "svhn") -> DigitSet:
        training = ("train",) if name == "svhn" else ("train", "extra")
        return DigitSet(name=name, train=tuple(self.files[split] for split in training), test=self.files["test"])

    def load(self, root: Path, name: str = "svhn", **how: object) -> tuple[ImageDataset, ImageDataset]:
        find_or_convert(self.named(name), root, **{"offline": True, "note": print, "limits": LIMITS} | how)
        return load_svhn(self.named(name), root, offline=True, note=print)


def describe(path: Path, images: int, url: str = NOWHERE) -> MatFile:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return MatFile(archive=Archive(url=f"{url}/{path.name}", size_bytes=len(data), digest=digest), images=images)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("svhn-published")
    rng = np.random.default_rng(0)
    images, digits, files = {}, {}, {}
    for split, count in COUNTS.items():
        images[split] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        digits[split] = rng.permutation(np.arange(count) % 10)
        y = np.where(digits[split] == 0, 10, digits[split]).astype(np.uint8)[:, None]
        path = folder / f"{split}_32x32.mat"
        savemat(path, {"X": images[split].transpose(1, 2, 3, 0), "y": y}, do_compression=True)
        files[split] = describe(path, count)
    return Digits(folder, images, digits, files)


@pytest.fixture
def at_hand(published: Digits, tmp_path: Path) -> Path:
    for path in published.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def check(dataset: ImageDataset, published: Digits, *splits: str) -> None:
    images, labels = dataset.gather(np.arange(len(dataset)))
    assert np.array_equal(images, np.concatenate([published.images[split] for split in splits]))
    assert np.array_equal(labels, np.concatenate([published.digits[split] for split in splits]))
    assert [dataset.class_names[label] for label in labels[:20]] == [str(label) for label in labels[:20]]


def test_pictures_and_digits(published: Digits, at_hand: Path):
    train, test = published.load(at_hand)
    check(train, published, "train")
    check(test, published, "test")
    assert train.key(3) == "train_32x32.bin:3"
    assert sorted(path.name for path in (at_hand / "svhn").glob("*.bin")) == ["test_32x32.bin", "train_32x32.bin"]
    assert (at_hand / "train_32x32.mat").exists()  # what a person put there stays


def test_extra_pictures_come_after_the_others(published: Digits, at_hand: Path):
    train, test = published.load(at_hand, "svhn-extra")
    check(train, published, "train", "extra")
    check(test, published, "test")


def test_the_records_are_enough_the_second_time(published: Digits, at_hand: Path, monkeypatch: pytest.MonkeyPatch):
    published.load(at_hand)
    for path in at_hand.glob("*.mat"):
        path.unlink()
    monkeypatch.setattr(svhn, "read_mat", lambda *_: pytest.fail("converted again"))
    check(published.load(at_hand)[0], published, "train")
    check(published.load(at_hand / "svhn")[0], published, "train")


def test_what_is_converted_is_not_written_to(published: Digits, at_hand: Path):
    published.load(at_hand)
    (at_hand / "svhn" / ".lock").unlink()
    before = sorted((at_hand / "svhn").iterdir())
    check(published.load(at_hand)[0], published, "train")
    assert sorted((at_hand / "svhn").iterdir()) == before


def test_records_of_another_set_are_checked_before_more_are_added(published: Digits, at_hand: Path):
    published.load(at_hand)
    path = at_hand / "svhn" / "train_32x32.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train_32x32\.bin: SHA256 is not"):
        published.load(at_hand, "svhn-extra")
    check(published.load(at_hand, "svhn-extra", repair=True)[0], published, "train", "extra")


def test_files_that_two_sets_share_are_hashed_once(published: Digits, at_hand: Path, monkeypatch: pytest.MonkeyPatch):
    published.load(at_hand, "svhn-extra")
    published.load(at_hand, "svhn")
    monkeypatch.setattr(verify, "file_matches", lambda *_: pytest.fail("hashed again"))
    published.load(at_hand, "svhn-extra")


def test_the_files_may_lie_in_the_folder_of_the_cache(published: Digits, at_hand: Path):
    (at_hand / "svhn").mkdir()
    for path in at_hand.glob("*.mat"):
        path.rename(at_hand / "svhn" / path.name)
    check(published.load(at_hand)[1], published, "test")


def test_the_files_are_fetched(published: Digits, tmp_path: Path, web_server: Callable[[Path], str]):
    url = web_server(published.folder)
    files = {
        split: replace(file, archive=replace(file.archive, url=f"{url}/{file.archive.name}"))
        for split, file in published.files.items()
    }
    notes: list[str] = []
    train, _ = replace(published, files=files).load(tmp_path, offline=False, note=notes.append)
    check(train, published, "train")
    assert sum("fetching" in note for note in notes) == 2
    assert not list(tmp_path.rglob("*.mat"))  # the records are all that is needed


@pytest.fixture
def web_server() -> Callable[[Path], str]:
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    servers: list[http.server.HTTPServer] = []

    def serve(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_is_fetched_is_verified(published: Digits, tmp_path: Path, web_server: Callable[[Path], str]):
    (tmp_path / "web").mkdir()
    name = published.files["train"].archive.name
    data = bytearray((published.folder / name).read_bytes())
    data[200] ^= 1
    (tmp_path / "web" / name).write_bytes(data)
    url = web_server(tmp_path / "web")
    train = published.files["train"]
    files = published.files | {"train": replace(train, archive=replace(train.archive, url=f"{url}/{name}"))}
    with pytest.raises(DataError, match=r"its SHA256 is not that of the published file: damaged\.\nTry again"):
        replace(published, files=files).load(tmp_path / "cache", offline=False)
    assert not list((tmp_path / "cache").rglob("*.mat"))
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_offline_says_which_file_is_missing(published: Digits, tmp_path: Path):
    with pytest.raises(
        DataError, match=r"train_32x32\.mat is not in .*--offline.*\n.*or put train_32x32\.mat from http"
    ):
        published.load(tmp_path)


def test_no_network_says_what_to_do(published: Digits, tmp_path: Path):
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/train_32x32\.mat: cannot be reached.*\n.*or put train_32x32"):
        published.load(tmp_path, offline=False)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_file_is_refused(how: str, published: Digits, at_hand: Path):
    path = at_hand / "train_32x32.mat"
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[-1]
    data[len(data) // 2] ^= how == "flipped"
    path.write_bytes(data)
    expected = "bytes, expected" if how == "cut" else "its SHA256 is not that of the published file"
    with pytest.raises(DataError, match=rf"train_32x32\.mat: .*{expected}.*\nreplace it by the file from"):
        published.load(at_hand)


def test_a_file_that_cannot_be_read_is_named(published: Digits, at_hand: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(svhn, "file_matches", refuse)
    with pytest.raises(DataError, match=r"train_32x32\.mat: cannot be read: Input/output error\nmake it readable"):
        published.load(at_hand)


def test_what_a_killed_conversion_has_left_is_deleted(published: Digits, at_hand: Path):
    (at_hand / "svhn").mkdir()
    (at_hand / "svhn" / ".tmp-train_32x32.bin-0123abcd").write_bytes(b"half")
    published.load(at_hand)
    assert not list((at_hand / "svhn").glob(".tmp-*"))


def test_damaged_records_are_refused(published: Digits, at_hand: Path):
    published.load(at_hand)
    path = at_hand / "svhn" / "train_32x32.bin"
    data = bytearray(path.read_bytes())
    data[3073 * 4] = 77
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"record 4 .*has label 77, expected 0 to 9\.\n`thumbnet data download svhn`"):
        published.load(at_hand)
    notes: list[str] = []
    check(published.load(at_hand, repair=True, note=notes.append)[0], published, "train")
    assert "has label 77, expected 0 to 9; it will be made anew" in notes[0]
    path.unlink()
    check(published.load(at_hand)[0], published, "train")


def test_a_damaged_note_of_what_was_converted_does_no_harm(published: Digits, at_hand: Path):
    published.load(at_hand)
    (at_hand / "svhn" / "converted.json").write_text("[1")
    check(published.load(at_hand)[0], published, "train")


X, Y = np.zeros((32, 32, 3, 5), np.uint8), np.array([[1], [2], [9], [10], [5]], np.uint8)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"y": Y}, r"the variable X should be uint8 \[32, 32, 3, 5\], it has only y"),
        ({"X": X}, r"the variable y should be numbers \[5, 1\], it has only X"),
        ({"images": X, "labels": Y}, r"X should be uint8 .*, it has only images, labels"),
        ({}, r"it has only nothing"),
        ({"X": X[..., :4], "y": Y}, r"X should be uint8 \[32, 32, 3, 5\], it is uint8 \[32, 32, 3, 4\]"),
        ({"X": X.transpose(3, 0, 1, 2), "y": Y}, r"it is uint8 \[5, 32, 32, 3\]"),
        ({"X": X.astype(np.float64), "y": Y}, r"X should be uint8 .*, it is double"),
        ({"X": X, "y": Y[:4]}, r"y should be numbers \[5, 1\], it is uint8 \[4, 1\]"),
        ({"X": X, "y": "12345"}, r"y should be numbers .*, it is char"),
        ({"X": X, "y": {"a": 1}}, r"y should be numbers .*, it is struct"),
        ({"X": X, "y": Y * 0}, r"the variable y has 0 for picture 0, expected 1 to 10"),
        ({"X": X, "y": Y + 1}, r"y has 11 for picture 3, expected 1 to 10 \(10 is digit 0\)"),
        ({"X": X, "y": Y + 0.5}, r"y has 1\.5 for picture 0"),
        ({"X": X, "y": np.full((5, 1), np.nan)}, r"y has nan for picture 0"),
    ],
)
def test_other_variables_are_refused(variables: dict[str, object], message: str, tmp_path: Path):
    savemat(tmp_path / "x.mat", variables)
    with pytest.raises(DataError, match=message):
        read_mat(tmp_path / "x.mat", 5)


def test_labels_may_be_of_any_number_type(tmp_path: Path):
    for kind in (np.uint8, np.int32, np.float64):
        savemat(tmp_path / "x.mat", {"X": X, "y": Y.astype(kind)})
        assert read_mat(tmp_path / "x.mat", 5)[1].tolist() == [1, 2, 9, 0, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB file, or damaged"),
        (b"<html>404</html>" * 20, "not a MATLAB file, or damaged"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512), "version 7.3"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_mat(tmp_path / "x.mat", 5)


def test_a_file_cut_short_is_refused(tmp_path: Path):
    savemat(tmp_path / "x.mat", {"X": X + 7, "y": Y})
    data = (tmp_path / "x.mat").read_bytes()
    for length in (100, 128, 200, 5_000, len(data) - 4):
        (tmp_path / "x.mat").write_bytes(data[:length])
        with pytest.raises(DataError):
            read_mat(tmp_path / "x.mat", 5)


def test_what_was_published():
    names = [file.archive.name for file in digit_sets()["svhn-extra"].files]
    assert names == ["train_32x32.mat", "extra_32x32.mat", "test_32x32.mat"]
    assert (svhn.TRAIN.images, svhn.TEST.images, svhn.EXTRA.images) == (73_257, 26_032, 531_131)
    assert (svhn.TRAIN.archive.size_bytes, svhn.TEST.archive.size_bytes) == (182_040_794, 64_275_384)
    assert known_class_names("svhn") == known_class_names("svhn-extra") == CLASS_NAMES == tuple("0123456789")


def test_it_is_a_data_set_known_by_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"train_32x32\.mat is not in"):
        load_splits(DataConfig(name="svhn"), data_dir=tmp_path, offline=True)


def test_the_command_fetches_and_checks_it(
    published: Digits, at_hand: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(svhn, "digit_sets", lambda: {name: published.named(name) for name in ("svhn", "svhn-extra")})
    where = ["--data-dir", str(at_hand), "--offline"]
    assert main(["data", "verify", "svhn", *where]) == 3
    assert "not there yet; `thumbnet data download svhn` fetches it" in capsys.readouterr().err
    assert main(["data", "download", "svhn", *where]) == 0
    assert capsys.readouterr().out == f"{at_hand / 'svhn'}\n"
    for names in (["svhn"], []):
        assert main(["data", "verify", *names, *where]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"svhn: {at_hand / 'svhn' / name}_32x32.bin: right, {COUNTS[name]} records" for name in ("train", "test")
        ]
    assert main(["data", "download", "svhn-extra", *where]) == 0
    capsys.readouterr()
    assert main(["data", "verify", *where]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"svhn-extra: {at_hand / 'svhn' / name}_32x32.bin: right, {COUNTS[name]} records"
        for name in ("train", "extra", "test")
    ]
    os.truncate(at_hand / "svhn" / "test_32x32.bin", 3073)
    assert main(["data", "verify", *where]) == 3
    assert "3,073 bytes, expected 36,876 (12 records)" in capsys.readouterr().out
    assert main(["data", "download", "svhn", *where]) == 0
    assert main(["data", "verify", *where]) == 0


def test_the_note_names_what_was_converted(published: Digits, at_hand: Path):
    published.load(at_hand, "svhn-extra")
    converted = json.loads((at_hand / "svhn" / "converted.json").read_text())
    for name, digest in converted.items():
        data = (at_hand / "svhn" / name).read_bytes()
        assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
