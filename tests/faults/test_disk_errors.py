"""Disks that are full or broken while a checkpoint is saved, and old ones that cannot be deleted."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from thumbnet.errors import CheckpointError
from thumbnet.runs.checkpoint import load_checkpoint
from thumbnet.runs.store import CheckpointStore


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, index: int, number: int) -> list[int]:
    """Let the `index`-th call of `os.<name>`, counted from 0, fail; of a write the one before is cut short."""
    real, seen = getattr(os, name), []

    def call(*args, **kwargs):
        seen.append(1)
        if len(seen) == index and name == "write":
            return real(args[0], args[1][: len(args[1]) // 2])
        if len(seen) == index + 1:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return seen


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize(
    ("name", "index"),
    [*(("write", i) for i in range(4)), *(("fsync", i) for i in range(5)), ("mkdir", 1), ("open", 2), ("rename", 0)],
)
def test_a_failed_save_leaves_everything_as_it_was(tmp_path, make_checkpoint, monkeypatch, name, index, number):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for step in (1, 2):
        store.save(make_checkpoint(step))
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        seen = fail_at(patch, name, index, number)
        with pytest.raises(
            CheckpointError, match=re.escape(f"{store.folder}: cannot save the checkpoint of step 3")
        ) as error:
            store.save(make_checkpoint(3))
        assert len(seen) > index
    message = str(error.value)
    assert os.strerror(number) in message
    assert ("free some space" in message) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert "thumbnet train --resume" in message
    assert len(message.splitlines()) <= 3
    assert error.value.exit_code == 1
    assert contents(tmp_path) == before
    assert [entry.name for entry in sorted(store.folder.iterdir())] == ["step-00000001", "step-00000002"]
    assert store.latest().step == 2
    store.save(make_checkpoint(3))
    assert store.steps() == [2, 3]


@pytest.mark.parametrize("index", [0, 1])
def test_a_failed_replacement_leaves_the_old_one(tmp_path, make_checkpoint, monkeypatch, index):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        fail_at(patch, "rename", index, errno.EIO)
        with pytest.raises(CheckpointError, match="cannot save"):
            store.save(make_checkpoint(1))
    assert contents(tmp_path) == before


def test_the_folder_cannot_be_synced_after_the_commit(tmp_path, make_checkpoint, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(make_checkpoint(1))
    with monkeypatch.context() as patch:
        fail_at(patch, "fsync", 5, errno.EIO)
        with pytest.raises(CheckpointError, match="cannot save"):
            store.save(make_checkpoint(2))
    # The name may or may not survive a power cut, so the one before is not deleted.
    assert store.steps() == [1, 2]
    assert [load_checkpoint(tmp_path / f"step-{step:08d}").step for step in (1, 2)] == [1, 2]


LIMITED_SAVE = """
import resource, sys, torch
from pathlib import Path
from thumbnet.errors import CheckpointError
from thumbnet.runs.checkpoint import Checkpoint, save_checkpoint
def save(step, size):
    weights = {"w": torch.zeros(size)}
    save_checkpoint(Path(sys.argv[1]), Checkpoint(step=step, model=weights, average=None, state={}, info={}))
save(1, 10)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save(2, 1_000_000)
except CheckpointError as error:
    sys.exit(str(error))
"""


def test_a_limit_of_the_kernel(tmp_path):
    """No file of this process may grow over 100,000 bytes: the kernel itself refuses the rest of the write."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_SAVE, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot save the checkpoint of step 2 (3.8 MiB)" in done.stderr
    assert "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path / "step-00000001").step == 1


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_warning(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(make_checkpoint(1))
    (tmp_path / ".deleted-step-00000001").write_text("in the way")
    notes: list[str] = []
    store.save(make_checkpoint(2), note=notes.append)
    assert store.latest().step == 2
    assert len(notes) == 1
    assert notes[0].startswith(f"warning: cannot delete the old checkpoint {tmp_path / 'step-00000001'}: ")
    assert "training goes on" in notes[0]
    (tmp_path / ".deleted-step-00000001").unlink()
    store.save(make_checkpoint(3), note=notes.append)
    assert store.steps() == [3]
    assert len(notes) == 1


@pytest.mark.parametrize("name", ["unlink", "rmdir"])
def test_a_deletion_that_fails_half_way(tmp_path, make_checkpoint, monkeypatch, name):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(make_checkpoint(1))
    notes: list[str] = []
    with monkeypatch.context() as patch:
        fail_at(patch, name, 0, errno.EIO)
        store.save(make_checkpoint(2), note=notes.append)
    assert len(notes) == 1
    assert store.steps() == [2]
    assert store.latest(notes.append).step == 2
    assert len(notes) == 1
