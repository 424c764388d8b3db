import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thumbnet.data import picture_cache
from thumbnet.data.folder import list_pictures
from thumbnet.data.picture_cache import DecodedPictures, decode_listing
from thumbnet.errors import DataError

SIDE = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("cat", 9), ("dog", 6)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            image.save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def decode(folder: Path, tmp_path: Path) -> Callable[..., tuple[DecodedPictures, bool]]:
    """Decode the folder; tells whether anything was decoded anew."""

    def decode(size: int = SIDE, where: Path = folder) -> tuple[DecodedPictures, bool]:
        notes: list[str] = []
        decoded = decode_listing(list_pictures(where), size, tmp_path / "cache", notes.append)
        return decoded, any("decoding" in note for note in notes)

    return decode


def cached(tmp_path: Path) -> Path:
    (only,) = (path for path in (tmp_path / "cache" / "decoded").iterdir() if not path.name.startswith("."))
    return only


def test_each_record_is_the_picture_that_its_key_names(folder: Path, decode):
    decoded, _ = decode()
    assert sorted(decoded.part.keys) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    images = decoded.layout.images(decoded.part.records)
    for number, key in enumerate(decoded.part.keys):
        assert np.array_equal(images[number], np.asarray(Image.open(folder / key)))
        assert decoded.labels[number] == ["cat", "dog"].index(key.split("/")[0])
    assert np.array_equal(decoded.layout.labels(decoded.part.records), decoded.labels)
    assert len(np.unique(decoded.digests)) == 15


def test_classes_are_mixed(decode):
    decoded, _ = decode()
    assert decoded.labels[:9].sum() > 0  # in order of the names, nine cats would come first


def test_the_second_start_opens_no_picture(decode, monkeypatch: pytest.MonkeyPatch):
    first, anew = decode()
    assert anew
    monkeypatch.setattr(picture_cache, "decode_all", lambda *_: pytest.fail("decoded again"))
    second, anew = decode()
    assert not anew
    assert np.array_equal(first.part.records, second.part.records)
    assert np.array_equal(first.digests, second.digests)
    assert first.part.keys == second.part.keys


def add(folder: Path) -> None:
    shutil.copy(folder / "cat" / "0.png", folder / "dog" / "new.png")


def remove(folder: Path) -> None:
    (folder / "cat" / "0.png").unlink()


def rename(folder: Path) -> None:
    (folder / "cat" / "0.png").rename(folder / "dog" / "x.png")


def rewrite(folder: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(folder / "cat" / "0.png")


def replace_without_a_trace(folder: Path) -> None:
    """Other content of the same size and time of writing, as `cp -p` and `rsync` may leave it."""
    path = folder / "cat" / "0.png"
    status, data = path.stat(), bytearray(path.read_bytes())
    time.sleep(0.02)  # the clock of the file system ticks every few milliseconds
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns


@pytest.mark.parametrize("change", [add, remove, rename, rewrite, replace_without_a_trace])
def test_a_change_is_noticed(change: Callable[[Path], None], folder: Path, decode, tmp_path: Path):
    before, _ = decode()
    kept = before.part.records.copy()
    change(folder)
    after, anew = decode()
    assert anew
    assert len(after.labels) == len(after.part.records) == len(list(folder.rglob("*.png")))
    assert np.array_equal(before.part.records, kept)  # a training that still reads the old ones is not disturbed
    assert sorted(path.name for path in cached(tmp_path).iterdir())[:3] == ["digests.bin", "index.json", "records.bin"]


def test_sizes_are_kept_side_by_side(decode, tmp_path: Path):
    decode(SIDE)
    assert decode(4)[0].layout.image_shape == (4, 4, 3)
    assert not decode(SIDE)[1]
    assert not decode(4)[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.json").write_text("{"),
        lambda folder: (folder / "index.json").write_text("[]"),
        lambda folder: (folder / "index.json").write_text(json.dumps({"key": 1})),
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "records.bin").unlink(),
        lambda folder: os.truncate(folder / "records.bin", 100),
        lambda folder: (folder / "digests.bin").write_bytes(b""),
    ],
)
def test_a_damaged_cache_is_made_anew(damage: Callable[[Path], None], decode, tmp_path: Path):
    expected = decode()[0].part.records.copy()
    damage(cached(tmp_path))
    decoded, anew = decode()
    assert anew
    assert np.array_equal(decoded.part.records, expected)


def test_bad_pictures_are_listed_and_tried_again_once_they_change(folder: Path, decode, tmp_path: Path):
    path = folder / "cat" / "0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    decoded, _ = decode()
    ((number, reason, _),) = decoded.bad
    assert decoded.part.keys[number] == "cat/0.png"
    assert not decoded.part.records[number].any()
    assert decoded.unreadable.read_text() == f"cat/0.png\t{reason}\n"
    assert decode()[0].bad == decoded.bad
    path.write_bytes(whole)
    decoded, anew = decode()
    assert anew
    assert decoded.bad == []
    assert not decoded.unreadable.exists()


def test_a_picture_that_the_disk_refused_is_tried_again_at_the_next_start(
    decode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Path.stat

    def refuse(path: Path, **how: bool) -> os.stat_result:
        if path.match("pets/cat/0.png") and not how:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, **how)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "stat", refuse)
        decoded, _ = decode()
        ((number, reason, passing),) = decoded.bad
        assert (decoded.part.keys[number], reason, passing) == ("cat/0.png", "Input/output error", True)
        assert not decode()[1]  # as long as nothing changes, the others are not decoded again
    decoded, anew = decode()
    assert anew
    assert decoded.bad == []
    assert decoded.part.records[number].any()


def test_a_full_disk_leaves_nothing(decode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"No space left on device\.\nMake room \(they take 0 MB\)"):
        decode()
    assert [path.name[:5] for path in (tmp_path / "cache" / "decoded").iterdir()] == [".lock"]


def test_a_cache_that_is_a_file_is_told(folder: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=r"cannot keep the decoded pictures.*\n.*--data-dir"):
        decode_listing(list_pictures(folder), SIDE, tmp_path / "cache", lambda _: None)


KILLED = """
import os, signal, sys
from pathlib import Path
from thumbnet.data import picture_cache
from thumbnet.data.folder import list_pictures
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(picture_cache if sys.argv[1] == "sync" else Path, sys.argv[1], killed)
picture_cache.decode_listing(list_pictures(Path(sys.argv[2])), 8, Path(sys.argv[3]), print)
"""


@pytest.mark.parametrize("stage", ["sync", "rename"])
def test_a_killed_decoding_leaves_the_old_records_or_none(stage: str, folder: Path, decode, tmp_path: Path):
    for _ in range(2):  # with none before, with others before
        arguments = [sys.executable, "-c", KILLED, stage, str(folder), str(tmp_path / "cache")]
        assert subprocess.run(arguments, check=False, capture_output=True).returncode == -9
        decoded, anew = decode()
        assert anew
        assert len(decoded.labels) == len(list(folder.rglob("*.png")))
        assert not list((tmp_path / "cache" / "decoded").glob(".tmp-*"))
        add(folder)


def test_of_two_processes_one_decodes_and_both_have_the_records(folder: Path, tmp_path: Path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom thumbnet.data import picture_cache\n"
        "from thumbnet.data.folder import list_pictures\n"
        "real = picture_cache.decode_all\n"
        "def slow(*a):\n    print('decoded'); time.sleep(0.5); return real(*a)\n"
        "picture_cache.decode_all = slow\n"
        f"folder, cache = Path({str(folder)!r}), Path({str(tmp_path / 'cache')!r})\n"
        "d = picture_cache.decode_listing(list_pictures(folder), 8, cache, print)\n"
        "print(len(d.labels), int(d.part.records.sum()))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert sum("decoded\n" in text for text in said) == 1
    assert len({text.splitlines()[-1] for text in said}) == 1
    assert said[0].splitlines()[-1].startswith("15 ")


HANGS = """
import os, sys, time
from pathlib import Path
from thumbnet.data import picture_cache
from thumbnet.data.folder import list_pictures
real, first = picture_cache.decode_all, Path(sys.argv[3])
def hangs(*arguments):
    bad = real(*arguments)
    try:
        first.symlink_to(str(os.getpid()))
    except FileExistsError:
        return bad
    time.sleep(60)
picture_cache.decode_all = hangs
note = lambda text: print(text, flush=True)
decoded = picture_cache.decode_listing(list_pictures(Path(sys.argv[1])), 8, Path(sys.argv[2]), note)
print(len(decoded.labels), int(decoded.part.records.sum()))
"""


def test_of_three_processes_the_one_that_decodes_is_killed_and_one_other_decodes(folder: Path, decode, tmp_path: Path):
    first = tmp_path / "first"
    command = [sys.executable, "-c", HANGS, str(folder), str(tmp_path / "cache"), str(first)]
    processes = {
        process.pid: process
        for process in (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "abc")
    }
    deadline = time.monotonic() + 60
    while not first.is_symlink():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = processes.pop(int(str(first.readlink())))
    for process in processes.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "pets: another process is decoding the pictures; waiting for that\n"
    killed.kill()
    killed.communicate()
    said = [process.communicate(timeout=60)[0] for process in processes.values()]
    assert [process.returncode for process in processes.values()] == [0, 0]
    assert sum("decoding 15 pictures" in text for text in said) == 1
    decoded, anew = decode()
    assert not anew
    assert [text.splitlines()[-1] for text in said] == 2 * [f"15 {int(decoded.part.records.sum())}"]
    undisturbed = decode_listing(list_pictures(folder), SIDE, tmp_path / "other", lambda _: None)
    np.testing.assert_array_equal(decoded.part.records, undisturbed.part.records)
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 2  # the records and their lock
