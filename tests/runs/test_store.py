import math
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from thumbnet.errors import CheckpointError
from thumbnet.runs.checkpoint import NewerFormatError, load_checkpoint, load_weights
from thumbnet.runs.store import CheckpointStore


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def no_note(text: str) -> None:
    pytest.fail(f"unexpected note: {text}")


def test_the_newest_are_kept(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    assert store.steps() == []
    for step in (0, 5, 10, 15, 20):
        store.save(make_checkpoint(step), note=no_note)
    assert store.steps() == [10, 15, 20]
    assert names(store.folder) == ["step-00000010", "step-00000015", "step-00000020"]
    latest = store.latest(no_note)
    assert latest.step == 20
    assert torch.equal(latest.model["a.bias"], make_checkpoint(20).model["a.bias"])
    assert store.path("latest").name == "step-00000020"
    assert store.path(15).name == "step-00000015"


def test_the_best_is_kept_outside_the_window_and_nan_is_never_best(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=2)
    metrics = [0.5, math.nan, 0.9, 0.8, math.inf, math.nan, None, 0.9]
    for step, metric in enumerate(metrics):
        store.save(make_checkpoint(step), metric, note=no_note)
    assert store.steps() == [2, 6, 7]  # the earliest of the two with 0.9
    assert store.path("best").name == "step-00000002"
    # A new process knows the best too.
    assert CheckpointStore(tmp_path, keep=2).best_step() == 2
    store.save(make_checkpoint(8), 0.95, note=no_note)
    assert store.steps() == [7, 8]
    assert store.best_step() == 8


def test_nan_first_is_not_best(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1), math.nan)
    assert store.best_step() is None
    store.save(make_checkpoint(2), -3.0)
    assert store.best_step() == 2


def test_no_best_without_a_metric(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        store.path("best")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        store.latest()
    store.save(make_checkpoint(1))
    with pytest.raises(CheckpointError, match="use the latest, or train with --validation"):
        store.path("best")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 - there are: \[1\]"):
        store.path(9)


def test_clocks_do_not_matter(tmp_path, make_checkpoint, monkeypatch):
    store = CheckpointStore(tmp_path, keep=4)
    now = time.time()
    for step in range(0, 12, 2):
        monkeypatch.setattr(time, "time", lambda step=step: now - 3600 * step)
        store.save(make_checkpoint(step), metric=0.1)
        for shuffled, folder in enumerate(
            random.Random(step).sample(sorted(tmp_path.iterdir()), k=len(names(tmp_path)))
        ):
            os.utime(folder, (now - 86400 * shuffled, now - 86400 * shuffled))
    assert store.steps() == [0, 4, 6, 8, 10]
    assert store.latest(no_note).step == 10


def test_steps_of_more_digits_come_after(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (99_999_999, 100_000_000):
        store.save(make_checkpoint(step))
    assert store.steps() == [99_999_999, 100_000_000]
    assert store.latest(no_note).step == 100_000_000


def test_other_files_in_the_folder_are_left_alone(tmp_path, make_checkpoint):
    for name in ("step-00000001.bak", "notes", "step-abc", "step-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000002").write_text("a file")
    store = CheckpointStore(tmp_path, keep=1)
    store.save(make_checkpoint(5))
    store.save(make_checkpoint(6))
    assert store.steps() == [6]
    assert len(names(tmp_path)) == 6


def test_after_falling_back_the_damaged_newer_one_goes_and_whole_ones_stay(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20, 30):
        store.save(make_checkpoint(step))
    model = tmp_path / "step-00000030" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    assert store.latest(lambda text: None).step == 20
    store.save(make_checkpoint(25))
    assert store.steps() == [20, 25]
    assert store.latest(no_note).step == 25


def test_what_was_just_saved_is_never_deleted(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(make_checkpoint(30))
    store.save(make_checkpoint(10))
    assert store.steps() == [10, 30]


def test_a_checkpoint_under_another_step_is_damage(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000099")
    notes: list[str] = []
    assert store.latest(notes.append).step == 1
    assert "holds step 1, not 99" in notes[0]


def test_the_newest_that_can_be_loaded(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        store.save(make_checkpoint(step))
    (tmp_path / "step-00000003" / "model.safetensors").unlink()
    tried: list[str] = []

    def load(path: Path) -> str:
        tried.append(path.name)
        if path.name == "step-00000003":
            load_weights(path, "raw")
        return "what was asked for"

    notes: list[str] = []
    assert store.newest(load, notes.append) == (2, "what was asked for")
    assert tried == ["step-00000003", "step-00000002"]
    assert len(notes) == 1
    assert "model.safetensors: this file is missing" in notes[0]
    assert notes[0].endswith("\nThe one before it is tried instead")


def test_after_the_oldest_none_is_said_to_be_tried(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(make_checkpoint(step))
        (tmp_path / f"step-{step:08d}" / "manifest.json").write_text("{}")
    notes: list[str] = []
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints can be used"):
        store.newest(load_checkpoint, notes.append)
    assert ["tried instead" in note for note in notes] == [True, False]


def test_one_that_is_deleted_while_it_is_loaded_gives_way_to_the_newest(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(make_checkpoint(step))

    def load(path: Path) -> int:
        if path.name == "step-00000002":  # the training goes on: saves another, deletes this one
            store.save(make_checkpoint(3))
            shutil.rmtree(path)
        return load_checkpoint(path).step

    assert store.newest(load, no_note) == (3, 3)


def test_a_newer_format_is_not_passed_over(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(make_checkpoint(step))

    def load(path: Path) -> None:
        raise NewerFormatError(path.name)

    with pytest.raises(NewerFormatError, match="step-00000002"):
        store.newest(load, no_note)


def test_a_damaged_one_that_was_fallen_back_from_is_neither_newest_nor_best(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=2)
    for step, metric in ((10, 0.5), (20, 0.6), (30, 0.9)):
        store.save(make_checkpoint(step), metric)
    model = tmp_path / "step-00000030" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    resumed = CheckpointStore(tmp_path, keep=2)
    assert resumed.latest(lambda text: None).step == 20
    resumed.save(make_checkpoint(40), 0.4, note=no_note)  # past the damaged one
    assert resumed.steps() == [20, 40]
    assert resumed.best_step() == 20


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_no_other_passes_for_a_best_one_that_is_incomplete(tmp_path, make_checkpoint, name):
    store = CheckpointStore(tmp_path)
    for step, metric in ((10, 0.5), (20, 0.9), (30, 0.4)):
        store.save(make_checkpoint(step), metric)
    (tmp_path / "step-00000020" / name).unlink()
    with pytest.raises(CheckpointError, match=r"step-00000020.*\nit may have been the best"):
        store.path("best")
    assert store.path("latest").name == "step-00000030"


def test_one_that_is_saved_anew_counts_again(tmp_path, make_checkpoint):
    store = CheckpointStore(tmp_path, keep=1)
    for step in (10, 20):
        store.save(make_checkpoint(step))
    CheckpointStore(tmp_path, keep=2).save(make_checkpoint(10))
    (tmp_path / "step-00000020" / "manifest.json").write_text("{}")
    assert store.latest(lambda text: None).step == 10
    store.save(make_checkpoint(20), note=no_note)
    assert store.steps() == [20]
