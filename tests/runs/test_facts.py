import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.errors import CheckpointError, DataError, ThumbnetError
from thumbnet.runs.facts import DATA_FILE, check_classes, check_facts, facts_of, read_facts, write_facts

LAYOUT = RecordFormat(image_shape=(4, 6, 3))


def pictures(count: int, classes: tuple[str, ...], name: str) -> ImageDataset:
    records = np.zeros((count, LAYOUT.record_bytes), np.uint8)
    return ImageDataset(name, classes, LAYOUT, [RecordPart(name="x", where="x", records=records)])


def splits(
    counts: tuple[int, int, int] = (5, 2, 3),
    classes: tuple[str, ...] = ("cat", "dög"),
    fingerprint: str = "abc",
    name: str = "pets",
) -> Splits:
    train, validation, test = (pictures(count, classes, name) if count else None for count in counts)
    assert train is not None
    return Splits(train=train, validation=validation, test=test, fingerprint=fingerprint)


def test_facts_are_read_as_they_were_written(tmp_path: Path):
    write_facts(tmp_path, splits((5, 0, 3)))
    facts = read_facts(tmp_path)
    assert facts == facts_of(splits((5, 0, 3)))
    assert facts is not None
    assert (facts.class_names, facts.image_shape) == (("cat", "dög"), (4, 6, 3))
    assert (facts.train, facts.validation, facts.test, facts.fingerprint) == (5, 0, 3, "abc")
    not_utf8 = splits(classes=("b\udce4r", "cat"))
    write_facts(tmp_path, not_utf8)
    assert read_facts(tmp_path) == facts_of(not_utf8)


def test_names_that_are_no_text_are_kept(tmp_path: Path):
    classes = (os.fsdecode(b"b\xe4r"), 'quo"te\n')
    write_facts(tmp_path, splits(classes=classes))
    facts = read_facts(tmp_path)
    assert facts is not None
    assert facts.class_names == classes


def test_a_run_without_facts_is_not_compared(tmp_path: Path):
    assert read_facts(tmp_path) is None
    check_facts(tmp_path, splits())


def test_the_same_data_pass(tmp_path: Path):
    write_facts(tmp_path, splits())
    check_facts(tmp_path, splits())


def test_pictures_that_were_moved_are_the_same(tmp_path: Path):
    write_facts(tmp_path, splits())
    check_facts(tmp_path, splits(name="animals"))


def test_known_data_are_the_same_by_name(tmp_path: Path):
    write_facts(tmp_path, splits(fingerprint=""))
    for fingerprint in ("", "abc"):
        with pytest.raises(DataError, match="the data was pets and is animals"):
            check_facts(tmp_path, splits(name="animals", fingerprint=fingerprint))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (splits((5, 2, 3), ("cat", "fox")), r"the classes have changed \(gone: dög; new: fox\)"),
        (splits((5, 2, 3), ("ant", "cat", "dög")), r"the classes have changed \(new: ant\)"),
        (splits((5, 2, 3), ("dög", "cat")), r"the classes have changed \(another order\)"),
        (splits((6, 2, 3)), r"'train' was 5 and is 6"),
        (splits((5, 0, 3)), r"'validation' was 2 and is 0"),
        (splits((5, 2, 4)), r"'test' was 3 and is 4"),
        (splits(fingerprint="xyz"), r"pictures have changed, though there are as many"),
    ],
)
def test_other_data_are_refused_with_the_difference(now: Splits, message: str, tmp_path: Path):
    write_facts(tmp_path, splits())
    with pytest.raises(DataError, match=rf"pets: .*{message}.*\nput the pictures back"):
        check_facts(tmp_path, now)


@pytest.mark.parametrize("change", ["{", "[]", "null", '{"name": "x"}', "\xff"])
def test_damaged_facts_are_told(change: str, tmp_path: Path):
    (tmp_path / DATA_FILE).write_bytes(change.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"data\.json: damaged"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"class_names": []}, {"class_names": 7}, {"image_shape": [32, 32]}, {"image_shape": [0, 4, 3]}, {"train": "x"}],
)
def test_impossible_facts_are_told(change: dict[str, object], tmp_path: Path):
    values = dataclasses.asdict(facts_of(splits())) | change
    (tmp_path / DATA_FILE).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"data\.json: damaged"):
        read_facts(tmp_path)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ThumbnetError, match=r"data\.json: cannot write.*\nTo go on: free some space"):
        write_facts(tmp_path, splits())


def test_an_evaluation_needs_the_same_classes_and_no_more(tmp_path: Path):
    check_classes(tmp_path, splits())
    write_facts(tmp_path, splits())
    check_classes(tmp_path, splits((9, 0, 1), fingerprint="xyz"))
    with pytest.raises(DataError, match=r"the classes have changed \(new: ant\).*\nput the classes back"):
        check_classes(tmp_path, splits(classes=("ant", "cat", "dög")))
