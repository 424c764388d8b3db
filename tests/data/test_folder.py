import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thumbnet.config import DataConfig, load_preset
from thumbnet.data import lasting_name, load_splits
from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.data.folder import hold_out
from thumbnet.errors import DataError, UsageError
from thumbnet.input.pipeline import TrainingInput

SIDE = 4


def picture(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 cats, 21 dogs, 3 emus, 1 fox; no splits."""
    for first, (name, count) in enumerate((("cat", 40), ("dog", 21), ("emu", 3), ("fox", 1))):
        for number in range(count):
            put(tmp_path / "pets" / name / f"{number}.png", 1000 * first + number)
    return tmp_path / "pets"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., tuple[Splits, list[str]]]:
    def load(where: Path, **changes: object) -> tuple[Splits, list[str]]:
        notes: list[str] = []
        config = DataConfig(**({"name": str(where), "image_size": SIDE} | changes))
        return load_splits(config, data_dir=tmp_path / "cache", offline=True, note=notes.append), notes

    return load


def keys(dataset: ImageDataset | None) -> list[str]:
    return [] if dataset is None else [dataset.key(index) for index in range(len(dataset))]


def test_every_picture_is_in_one_split_with_its_label(folder: Path, load):
    splits, _ = load(folder, validation=0.1)
    assert splits.train.class_names == ("cat", "dog", "emu", "fox")
    parts = [splits.train, splits.validation, splits.test]
    assert sorted(key for part in parts for key in keys(part)) == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*.png")
    )
    for part in parts:
        images, labels = part.gather(np.arange(len(part)))
        for key, image, label in zip(keys(part), images, labels, strict=True):
            assert np.array_equal(image, np.asarray(Image.open(folder / key)))
            assert part.class_names[label] == key.split("/")[0]
        assert np.array_equal(part.labels, labels)


def test_a_tenth_of_each_class_and_at_least_one_is_for_the_test(folder: Path, load):
    splits, notes = load(folder)
    assert np.bincount(splits.test.labels, minlength=4).tolist() == [4, 2, 1, 0]
    assert splits.validation is None
    assert len(splits.train) == 58
    assert "warning: pets: no pictures for the test of fox" in notes


def test_without_a_picture_to_spare_none_is_said_to_be_for_the_test(tmp_path: Path, load):
    for seed, name in enumerate(("cat", "dog")):
        put(tmp_path / "pets" / name / "0.png", seed)
    splits, notes = load(tmp_path / "pets")
    assert splits.test is None
    assert "pets: 2 classes; 2 for training, none for the test: no class has a picture to spare" in notes


@pytest.mark.parametrize(("asked", "got"), [(0.1, 6), (0.5, 29), (10, 10), (1, 1)])
def test_validation_as_a_share_or_a_number(asked: float, got: int, folder: Path, load):
    splits, _ = load(folder, validation=asked)
    assert len(splits.validation) == got
    assert set(keys(splits.validation)).isdisjoint(keys(splits.train) + keys(splits.test))
    assert keys(splits.test) == keys(load(folder)[0].test)  # the test is the same with and without


def test_the_split_depends_on_the_pixels_alone(folder: Path, load, tmp_path: Path):
    before = {(key.split("/")[0], key.split("/")[1]) for key in keys(load(folder)[0].test)}
    moved = tmp_path / "elsewhere"
    for path in folder.rglob("*.png"):
        target = moved / path.parent.name / "deeper" / f"renamed-{path.name}".replace(".png", ".bmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    after, _ = load(moved)
    assert {
        (key.split("/")[0], key.split("/")[2].removeprefix("renamed-").replace(".bmp", ".png"))
        for key in keys(after.test)
    } == before


def test_pictures_added_later_move_few_others(folder: Path, load):
    before = set(keys(load(folder)[0].test))
    for number in range(10):
        put(folder / "cat" / f"new{number}.png", 9000 + number)
    after = set(keys(load(folder)[0].test))
    assert len(before - after) <= 2


def test_copies_of_one_picture_stay_on_one_side(folder: Path, load):
    for number in range(40):
        for copy in range(3):
            shutil.copy(folder / "cat" / f"{number}.png", folder / "cat" / f"{number}-copy{copy}.png")
    splits, notes = load(folder, validation=0.2)
    parts = (splits.train, splits.validation, splits.test)
    sides = [{key.split("-")[0].removesuffix(".png") for key in keys(part)} for part in parts]
    assert sides[0].isdisjoint(sides[1] | sides[2])
    assert len(splits.validation) == pytest.approx(0.2 * (len(splits.train) + len(splits.validation)), rel=0.25)
    assert not any("two splits" in note for note in notes)


def test_copies_across_given_splits_are_told(tmp_path: Path, load):
    for split, seeds in (("train", (1, 2, 3, 4)), ("test", (4, 5))):
        for seed in seeds:
            put(tmp_path / "set" / split / "ab"[seed % 2] / f"{seed}.png", seed)
    _, notes = load(tmp_path / "set")
    (warning,) = (note for note in notes if "warning" in note)
    assert warning.startswith("warning: set: the same picture in two splits")
    assert warning.endswith(": train/a/4.png = test/a/4.png")


def test_one_picture_under_two_labels_is_told(folder: Path, load):
    shutil.copy(folder / "cat" / "7.png", folder / "dog" / "not-a-cat.png")
    _, notes = load(folder)
    (warning,) = (note for note in notes if "two classes" in note)
    assert warning.endswith("cat/7.png = dog/not-a-cat.png")


@pytest.mark.parametrize("lacking", ["train", "val", "test"])
def test_a_class_that_a_split_lacks_shifts_no_label(lacking: str, tmp_path: Path, load):
    for number, split in enumerate(("train", "val", "test")):
        for letter in "abc":
            if (split, letter) != (lacking, "a"):
                put(tmp_path / "set" / split / letter / "1.png", 10 * number + ord(letter))
    splits, notes = load(tmp_path / "set")
    for part in (splits.train, splits.validation, splits.test):
        assert part.class_names == ("a", "b", "c")
        for index, key in enumerate(keys(part)):
            assert part.class_names[part.labels[index]] == key.split("/")[1]
    purpose = {"train": "training", "val": "validation", "test": "the test"}[lacking]
    assert f"warning: set: no pictures for {purpose} of a" in notes


def test_the_balance_of_classes_is_shown(folder: Path, load):
    _, notes = load(folder)
    assert notes[1:] == [
        "pets: 4 classes; 58 for training, 7 for the test; a tenth of each class was set aside for the test",
        "            train        test",
        "  cat          36           4",
        "  dog          19           2",
        "  emu           2           1",
        "  fox           1           0",
        "warning: pets: no pictures for the test of fox",
    ]


def test_of_many_classes_the_largest_and_smallest_are_shown(tmp_path: Path, load):
    for number in range(300):
        for copy in range(1 + (number == 7)):
            put(tmp_path / "many" / f"class {number}" / f"{copy}.png", 10 * number + copy)
    splits, notes = load(tmp_path / "many")
    assert len(notes) < 30
    assert any(note.startswith("  class 7 ") for note in notes)
    assert "  ... 280 more classes" in notes
    assert len(splits.train.class_names) == 300
    assert sorted(splits.train.labels.tolist()) == list(range(300))  # more than a byte can tell


BAD = {"cat/0.png": b"", "dog/3.png": b"GIF89a", "dog/4.png": b"\x89PNG\r\n\x1a\n\0\0"}


def spoil(folder: Path) -> None:
    for name, content in BAD.items():
        (folder / name).write_bytes(content)


def test_bad_pictures_are_named_with_the_reason(folder: Path, load):
    spoil(folder)
    notes: list[str] = []
    config = DataConfig(name=str(folder), image_size=SIDE)
    for _ in range(2):  # from the cache, too
        notes.clear()
        with pytest.raises(DataError, match=r"3 of 65 pictures cannot be read.*\n.*--skip-bad") as caught:
            load_splits(config, data_dir=folder.parent / "cache", note=notes.append)
        listed = [note for note in notes if note.startswith("  ")]
        assert listed == [
            "  cat/0.png: empty, 0 bytes",
            "  dog/3.png: a GIF, not a JPEG, PNG, WebP or BMP",
            "  dog/4.png: not a JPEG, PNG, WebP or BMP, or damaged at its beginning",
        ]
        file = Path(str(caught.value).split("all of them in ")[1].splitlines()[0])
        assert [line.split("\t")[0] for line in file.read_text().splitlines()] == list(BAD)


def test_bad_pictures_can_be_skipped(folder: Path, load):
    spoil(folder)
    splits, notes = load(folder, skip_bad=True)
    assert set(BAD).isdisjoint(keys(splits.train) + keys(splits.test))
    assert len(splits.train) + len(splits.test) == 62
    (told,) = (note for note in notes if "going on without" in note)
    assert "3 of 65" in told
    assert Path(told.rpartition("the list: ")[2]).is_file()


def test_of_many_bad_pictures_the_first_are_named(folder: Path, load):
    for number in range(30):
        (folder / "cat" / f"{number}.png").write_bytes(b"x")
    _, notes = load(folder, skip_bad=True)
    assert sum(note.startswith("  cat/") for note in notes) == 20
    assert "  and 10 more" in notes


def test_a_folder_of_bad_pictures_alone_is_refused_even_then(folder: Path, load):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 65 pictures can be read"):
        load(folder, skip_bad=True)


def test_nothing_to_train_on_is_refused(tmp_path: Path, load):
    for split, content in (("train", b"x"), ("test", b"")):
        for letter in "ab":
            put(tmp_path / "set" / split / letter / "1.png", ord(letter) + len(content))
            if content:
                (tmp_path / "set" / split / letter / "1.png").write_bytes(content)
    with pytest.raises(DataError, match="there is no picture to train on"):
        load(tmp_path / "set", skip_bad=True)


@pytest.mark.parametrize("asked", [58, 100, 0.999])
def test_a_validation_split_that_leaves_nothing_is_refused(asked: float, folder: Path, load):
    with pytest.raises(UsageError, match=r"of 58 training pictures, it must be from 1 to 57"):
        load(folder, validation=asked)


def test_validation_takes_no_class_its_only_picture(tmp_path: Path, load):
    for letter in "abc":
        put(tmp_path / "set" / letter / "1.png", ord(letter))
    with pytest.raises(UsageError, match=r"no class of .* has two pictures to train on"):
        load(tmp_path / "set", validation=1)


def test_a_second_validation_split_is_refused_and_a_share_gives_way(tmp_path: Path, load):
    for number, split in enumerate(("train", "val")):
        for letter in "ab":
            put(tmp_path / "set" / split / letter / "1.png", 10 * number + ord(letter))
    assert len(load(tmp_path / "set")[0].validation) == 2
    assert load(tmp_path / "set")[0].test is None
    with pytest.raises(UsageError, match="has a validation split of its own"):
        load(tmp_path / "set", validation=1)
    splits, notes = load(tmp_path / "set", validation=0.5)
    assert (len(splits.train), len(splits.validation)) == (2, 2)
    assert "set: has a validation split of its own, which is used instead of a share of the rest" in notes


def test_a_table_is_loaded_as_a_folder_is(folder: Path, load, tmp_path: Path):
    rows = [f"pets/{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join([*rows, "pets/nothing.png,cat"]))
    with pytest.raises(DataError, match="1 of 66 pictures cannot be read"):
        load(tmp_path / "list.csv")
    table, notes = load(tmp_path / "list.csv", skip_bad=True)
    assert "  pets/nothing.png: No such file or directory" in notes
    pictures, _ = load(folder)
    assert {key.removeprefix("pets/") for key in keys(table.test)} == set(keys(pictures.test))


def test_the_fingerprint_tells_of_any_change(folder: Path, load):
    first = load(folder)[0].fingerprint
    assert first == load(folder)[0].fingerprint
    assert first != load(folder, validation=0.1)[0].fingerprint
    assert first != load(folder, image_size=8)[0].fingerprint
    put(folder / "cat" / "0.png", 77)
    second = load(folder)[0].fingerprint
    assert second != first
    (folder / "fox").rename(folder / "vixen")
    assert load(folder)[0].fingerprint not in (first, second)


def test_batches_come_from_a_folder(folder: Path, load):
    recipe = load_preset("classic")
    splits, _ = load(folder)
    distort = dataclasses.replace(recipe.distort, crop=SIDE)
    with TrainingInput(splits.train, distort, recipe.input, seed=0) as batches:
        assert next(batches).images.shape == (128, 3, SIDE, SIDE)
    with pytest.raises(UsageError, match=r"distort\.crop is 24: there is no such square in pictures of 4x4"):
        TrainingInput(splits.train, recipe.distort, recipe.input, seed=0)


def test_known_names_come_before_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert load_splits(DataConfig(name="shapes")).train.name == "shapes"
    assert lasting_name("shapes") == "shapes"
    assert lasting_name("./shapes") == str(tmp_path / "shapes")
    with pytest.raises(DataError, match="no pictures in it"):
        load_splits(DataConfig(name="./shapes"))
    with pytest.raises(UsageError, match=r"unknown data set 'cifar11' - did you mean 'cifar1.*\n.*folder that exists"):
        load_splits(DataConfig(name="cifar11"))


def test_another_image_size_is_for_pictures_of_ones_own():
    with pytest.raises(UsageError, match=r"--image-size 64: the pictures of shapes are 32x32"):
        load_splits(DataConfig(name="shapes", image_size=64))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), min_size=1, max_size=60),
    st.lists(st.integers(0, 10), min_size=5, max_size=5),
)
def test_held_out_are_the_smallest_of_each_class_and_all_their_copies(
    examples: list[tuple[int, int]], quotas: list[int]
):
    labels, digests = (np.array(column) for column in zip(*examples, strict=True))
    chosen = hold_out(labels, digests.astype(np.uint64), np.array(quotas))
    owner: dict[int, int] = {}
    for label, digest in examples:
        owner.setdefault(digest, label)
    expected = {
        digest
        for label, quota in enumerate(quotas)
        for digest in sorted(digest for digest, of in owner.items() if of == label)[:quota]
    }
    assert {digest for (_, digest), held in zip(examples, chosen, strict=True) if held} == expected
    assert all(held == (digest in expected) for (_, digest), held in zip(examples, chosen, strict=True))


def test_classes_that_are_not_utf8(tmp_path: Path, load):
    names = [os.fsdecode(name) for name in (b"b\xe4r", b"cat")]
    for seed, name in enumerate(names):
        for number in range(2):
            put(tmp_path / "pets" / name / f"{number}.png", 10 * seed + number)
    splits, notes = load(tmp_path / "pets")
    assert splits.train.class_names == tuple(names)
    assert any(r"b\udce4r" in note for note in notes)
    assert "\n".join(notes).encode()
