"""Checkpoints that are truncated, flipped, incomplete, forged or from the future."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.errors import CheckpointError
from thumbnet.runs.checkpoint import load_checkpoint, load_weights, read_manifest, save_checkpoint
from thumbnet.runs.store import CheckpointStore

FILES = ("model.safetensors", "average.safetensors", "state.safetensors", "manifest.json")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, make_checkpoint):
    """A store with steps 1 and 2, of which tests damage step 2, and the whole content of step 2."""
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    for step in (1, 2):
        store.save(make_checkpoint(step))
    path = store.path(2)
    return store, path, {name: (path / name).read_bytes() for name in FILES}


@pytest.fixture
def store(two_steps):
    """The same, whole again after each test."""
    yield two_steps[0]
    _, path, whole = two_steps
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in whole.items():
        (path / name).write_bytes(data)


def falls_back(store: CheckpointStore, name: str) -> None:
    """The newest is named with its file, and the one before is used."""
    notes: list[str] = []
    latest = store.latest(notes.append)
    assert latest.step == 1
    assert torch.equal(latest.model["w"], torch.ones(4, 3))
    assert len(notes) == 1
    assert str(store.folder / "step-00000002" / name) in notes[0]
    assert len(notes[0].splitlines()) <= 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_truncated(store, two_steps, name, share):
    _, path, whole = two_steps
    data = whole[name]
    (path / name).write_bytes(data[: min(int(len(data) * share), len(data) - 1)])
    falls_back(store, name)


@pytest.mark.parametrize("name", FILES)
def test_longer_than_it_should_be(store, two_steps, name):
    _, path, whole = two_steps
    (path / name).write_bytes(whole[name] + b"\0")
    falls_back(store, name)


@settings(max_examples=300)
@given(data=st.data())
def test_one_flipped_bit_anywhere(two_steps, data):
    store, path, whole = two_steps
    name = data.draw(st.sampled_from(FILES))
    content = bytearray(whole[name])
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    content[position // 8] ^= 1 << position % 8
    (path / name).write_bytes(content)
    try:
        falls_back(store, name)
    finally:
        (path / name).write_bytes(whole[name])


def test_a_flipped_bit_in_every_byte_of_the_manifest(store, two_steps):
    _, path, whole = two_steps
    content = bytearray(whole["manifest.json"])
    for position in range(len(content)):
        bit = 1 << position % 8
        content[position] ^= bit
        (path / "manifest.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
            read_manifest(path)
        content[position] ^= bit


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_makes_it_uncommitted(store, two_steps, name):
    (two_steps[1] / name).unlink()
    assert store.steps() == [1]
    assert store.path("latest").name == "step-00000001"
    falls_back(store, name)


def test_files_of_another_checkpoint(store, two_steps):
    shutil.copy(store.path(1) / "model.safetensors", two_steps[1])
    falls_back(store, "model.safetensors")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["pipe", "folder", "dangling link", "link to itself"])
def test_something_else_in_place_of_a_file(store, two_steps, name, what):
    path = two_steps[1] / name
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "dangling link": lambda: path.symlink_to("nowhere"),
        "link to itself": lambda: path.symlink_to(path.name),
    }[what]()
    falls_back(store, name)


def test_a_disk_that_cannot_read(store, monkeypatch):
    real = Path.open

    def fail(self: Path, *args, **kwargs):
        if self.name == "state.safetensors" and self.parent.name == "step-00000002":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    falls_back(store, "state.safetensors")


def test_all_damaged_is_an_error(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    damage = [
        lambda p: p.write_bytes(b""),
        lambda p: p.unlink(),
        lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\xff"),
    ]
    paths = [store.save(make_checkpoint(step)) for step in range(len(damage))]
    for path, spoil in zip(paths, damage, strict=True):
        spoil(path / "model.safetensors")
    notes: list[str] = []
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints can be used") as error:
        store.latest(notes.append)
    assert len(notes) == 3
    assert "start again with a new run" in str(error.value)


def test_only_what_is_asked_for_is_read(store, two_steps):
    """An evaluation of averaged weights needs neither the raw ones nor the optimizer."""
    (two_steps[1] / "state.safetensors").write_bytes(b"")
    assert torch.equal(load_weights(two_steps[1], "average")["b"], torch.full((5,), 2.5))
    (two_steps[1] / "average.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"average\.safetensors: damaged"):
        load_weights(two_steps[1], "average")


def restate(path: Path, **changes: object) -> None:
    """Change fields of a manifest and state its digest anew, as a forger or another version would."""
    fields = json.loads((path / "manifest.json").read_text()) | changes
    del fields["manifest_sha256"]
    digest = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(fields | {"manifest_sha256": digest}, indent=1) + "\n")


def forge(path: Path, data: bytes, name: str = "model.safetensors") -> None:
    """Put any bytes in place of a file of a checkpoint, with size and digest that are right."""
    (path / name).write_bytes(data)
    files = json.loads((path / "manifest.json").read_text())["files"]
    files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    restate(path, files=files)


def test_forging_works(store, two_steps):
    path = two_steps[1]
    forge(path, safetensors.torch.save({"x": torch.ones(2)}))
    assert load_checkpoint(path).model.keys() == {"x"}


def test_a_newer_format_is_refused_and_nothing_falls_back(store, two_steps):
    path = two_steps[1]
    restate(path, format_version=2)
    message = r"step-00000002: checkpoint format 2 is newer .*\(up to 1\): update thumbnet"
    for act in (lambda: load_checkpoint(path), lambda: load_weights(path, "raw"), lambda: store.latest(pytest.fail)):
        with pytest.raises(CheckpointError, match=message):
            act()


def test_a_newer_format_is_not_deleted(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=2)
    store.save(make_checkpoint(9))
    restate(store.path(9), format_version=2)
    store.save(make_checkpoint(1))
    store.save(make_checkpoint(2))
    assert {2, 9} <= set(store.steps())


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 0},
        {"format_version": "1"},
        {"format_version": None},
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"step": None},
        {"metric": "high"},
        {"metric": True},
        {"info": []},
        {"info": {"x": {"$float": "many"}}},
        {"info": {"x": {"$float": None}}},
        {"files": {}},
        {"files": []},
        {"files": {"model.safetensors": {}, "state.safetensors": {}}},
    ],
)
def test_a_manifest_of_odd_fields(store, two_steps, changes):
    restate(two_steps[1], **changes)
    falls_back(store, "manifest.json")


def test_a_manifest_that_names_files_elsewhere(store, two_steps):
    path = two_steps[1]
    files = json.loads((path / "manifest.json").read_text())["files"]
    for name in ("../step-00000001/model.safetensors", "/etc/passwd", "extra.safetensors"):
        restate(path, files=files | {name: files["model.safetensors"]})
        falls_back(store, "manifest.json")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b'{"manifest_sha256": 1}']
)
def test_a_manifest_that_is_none(store, two_steps, content):
    (two_steps[1] / "manifest.json").write_bytes(content)
    falls_back(store, "manifest.json")


def test_a_huge_manifest_is_not_read(store, two_steps):
    with (two_steps[1] / "manifest.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no space, but would take a terabyte of memory
    falls_back(store, "manifest.json")


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return (Path.touch, (self.sentinel,))


def test_a_pickle_is_never_run(store, two_steps, tmp_path):
    sentinel = tmp_path / "sentinel"
    pickled = pickle.dumps(Bomb(sentinel))
    torch.save({"w": Bomb(sentinel)}, tmp_path / "torch.pt")
    zipped = (tmp_path / "torch.pt").read_bytes()
    path = two_steps[1]
    for data in (pickled, zipped):
        for name in FILES[:3]:
            forge(path, data, name)
            with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: damaged: not a safetensors file"):
                load_checkpoint(path)
            forge(path, two_steps[2][name], name)
        (path / "manifest.json").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
            load_checkpoint(path)
        (path / "manifest.json").write_bytes(two_steps[2]["manifest.json"])
        single = tmp_path / "checkpoint.pt"
        single.write_bytes(data)
        for act in (load_checkpoint, read_manifest, lambda p: load_weights(p, "average")):
            with pytest.raises(CheckpointError, match=r"this is a file.*pickles are never read"):
                act(single)
    assert not sentinel.exists()
    pickle.loads(pickled)  # the bomb is live
    assert sentinel.exists()


def raw(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


HOSTILE = {
    "empty": b"",
    "no header": b"\0\0\0",
    "header of 2^63 bytes": raw({}, length=2**63),
    "header of 2^64 - 1 bytes": raw({}, length=2**64 - 1),
    "header of 200 MB": raw({}, b"\0" * 1000, length=200_000_000),
    "header is no JSON": raw(b"\x80\x04pickle"),
    "header is not UTF-8": raw(b'{"\xff": 1}'),
    "header is a list": raw([]),
    "header nests deeply": raw(b'{"w":' + b"[" * 50_000),
    "trailing bytes": raw({"w": entry(0, 8)}, b"\0" * 12),
    "body too short": raw({"w": entry(0, 8)}, b"\0" * 4),
    "overlap": raw({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
    "same bytes twice": raw({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8),
    "hole": raw({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12),
    "backwards": raw({"a": entry(8, 0, [2])}, b"\0" * 8),
    "shape larger than its bytes": raw({"a": entry(0, 8, [1000])}, b"\0" * 8),
    "shape overflows": raw({"a": entry(0, 8, [2**32, 2**32, 2])}, b"\0" * 8),
    "negative shape": raw({"a": entry(0, 8, [-2])}, b"\0" * 8),
    "unknown type": raw({"a": entry(0, 8, [2], "PICKLE")}, b"\0" * 8),
    "repeated key": raw(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b"\0" * 8,
    ),
}


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_safetensors(store, two_steps, what, name):
    forge(two_steps[1], HOSTILE[what], name)
    falls_back(store, name)


@settings(max_examples=200)
@given(data=st.binary(max_size=200) | st.binary(max_size=100).map(raw))
def test_any_bytes_as_a_tensor_file_are_an_error_or_tensors(two_steps, data):
    _, path, whole = two_steps
    try:
        forge(path, data)
        with contextlib.suppress(CheckpointError):
            assert all(isinstance(value, torch.Tensor) for value in load_checkpoint(path).model.values())
    finally:
        for name in FILES:
            (path / name).write_bytes(whole[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FILES[:2])
def test_weights_that_are_not_finite_are_not_used(store, two_steps, bad, dtype, name):
    forge(
        two_steps[1], safetensors.torch.save({"fine": torch.ones(2), "w": torch.tensor([0.0, bad], dtype=dtype)}), name
    )
    with pytest.raises(CheckpointError, match="tensor 'w' holds NaN or infinity"):
        load_weights(two_steps[1], "average" if "average" in name else "raw")
    falls_back(store, name)


def test_there_is_no_such_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"manifest\.json: this file is missing"):
        load_checkpoint(tmp_path)


def test_saving_after_damage_repairs(tmp_path, make_checkpoint):
    path = save_checkpoint(tmp_path, make_checkpoint(4))
    (path / "model.safetensors").unlink()
    assert load_checkpoint(save_checkpoint(tmp_path, make_checkpoint(4))).step == 4
