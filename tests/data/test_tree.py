import os
from pathlib import Path

import pytest

from thumbnet.data.folder import list_pictures
from thumbnet.errors import DataError


def put(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not decoded here")
    return root


def by_class(root: Path) -> dict[str, list[str]]:
    listing = list_pictures(root)
    return {
        name: [path for path, label in zip(listing.paths, listing.labels, strict=True) if label == number]
        for number, name in enumerate(listing.class_names)
    }


def test_a_folder_per_class_at_any_depth(tmp_path: Path):
    put(tmp_path, "dog/1.jpg", "cat/b/2.PNG", "cat/b/c/3.webp", "cat/4.bmp", "dog/5.JPEG")
    assert by_class(tmp_path) == {
        "cat": ["cat/4.bmp", "cat/b/2.PNG", "cat/b/c/3.webp"],
        "dog": ["dog/1.jpg", "dog/5.JPEG"],
    }
    listing = list_pictures(tmp_path)
    assert listing.splits is None
    assert (listing.name, listing.root) == (tmp_path.name, tmp_path)
    assert listing.stamps[:, 0].tolist() == [16] * 5


def test_splits_are_told_by_their_names(tmp_path: Path):
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg", "test/cat/4.jpg", "test/dog/5.jpg")
    listing = list_pictures(tmp_path)
    assert listing.class_names == ("cat", "dog")
    assert listing.splits is not None
    assert dict(zip(listing.paths, listing.splits.tolist(), strict=True)) == {
        "train/cat/1.jpg": 0,
        "train/dog/2.jpg": 0,
        "val/dog/3.jpg": 1,
        "test/cat/4.jpg": 2,
        "test/dog/5.jpg": 2,
    }


@pytest.mark.parametrize("name", ["valid", "Validation", "val"])
def test_other_names_of_a_split(name: str, tmp_path: Path):
    put(tmp_path, "training/cat/1.jpg", "training/dog/2.jpg", f"{name}/dog/3.jpg")
    listing = list_pictures(tmp_path)
    assert listing.splits is not None
    assert sorted(listing.splits.tolist()) == [0, 0, 1]


@pytest.mark.parametrize("lacking", ["train", "val", "test"])
def test_a_class_that_a_split_lacks_moves_no_label(lacking: str, tmp_path: Path):
    put(
        tmp_path,
        *(
            f"{split}/{name}/1.jpg"
            for split in ("train", "val", "test")
            for name in "abc"
            if (split, name) != (lacking, "a")
        ),
    )
    listing = list_pictures(tmp_path)
    assert listing.class_names == ("a", "b", "c")
    for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
        assert listing.class_names[label] == path.split("/")[1]


def test_a_class_may_be_called_train(tmp_path: Path):
    put(tmp_path, "train/1.jpg", "bus/2.jpg", "car/3.jpg")
    assert list(by_class(tmp_path)) == ["bus", "car", "train"]
    put(tmp_path, "train/steam/4.jpg")
    assert list(by_class(tmp_path)) == ["bus", "car", "train"]
    put(tmp_path, "test/5.jpg")  # no folders in it: a class, too
    assert list(by_class(tmp_path)) == ["bus", "car", "test", "train"]


@pytest.mark.parametrize(
    "files",
    [
        ["train/cat/1.jpg", "train/dog/2.jpg", "test/3.jpg"],
        ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "test/4.jpg"],
        ["train/cat/1.jpg", "train/dog/2.jpg", "test/3.jpg", "extra/4.jpg"],
        ["train/1.jpg", "test/2.jpg"],
        ["Train/1.jpg", "Test/cat/2.jpg"],
        ["val/cat/1.jpg", "test/cat/2.jpg"],
    ],
)
def test_splits_are_never_taken_for_classes(files: list[str], tmp_path: Path):
    put(tmp_path, *files)
    with pytest.raises(DataError, match=r"look like splits of the data: .*\nmake such folders"):
        list_pictures(tmp_path)


def test_a_split_without_anything_in_it_does_not_count(tmp_path: Path):
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "test/readme.txt")
    listing = list_pictures(tmp_path)
    assert listing.class_names == ("cat", "dog")
    assert listing.splits is not None
    assert listing.splits.tolist() == [0, 0, 1]


def test_splits_beside_something_else_are_refused(tmp_path: Path):
    put(tmp_path, "train/cat/1.jpg", "test/cat/1.jpg", "notes/readme.txt", "train/dog/1.jpg")
    assert list(by_class(tmp_path)) == ["cat", "dog"]
    put(tmp_path, "extra/cat/1.jpg")
    with pytest.raises(DataError, match=r"train look like splits of the data, extra does not"):
        list_pictures(tmp_path)


def test_the_same_split_twice_is_refused(tmp_path: Path):
    put(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg", "valid/cat/1.jpg")
    with pytest.raises(DataError, match="same split"):
        list_pictures(tmp_path)


def test_numbers_are_sorted_as_numbers(tmp_path: Path):
    put(tmp_path, *(f"{number}/1.jpg" for number in range(12)))
    assert list_pictures(tmp_path).class_names == tuple(str(number) for number in range(12))
    put(tmp_path, "007/1.jpg")  # not a plain number: all are text then
    assert list_pictures(tmp_path).class_names[:3] == ("0", "007", "1")


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path):
    put(tmp_path, "train/caf\u00e9/1.jpg", "test/cafe\u0301/2.jpg", "train/bar/3.jpg")
    assert list_pictures(tmp_path).class_names == ("bar", "caf\u00e9")


def test_what_is_passed_over_is_told(tmp_path: Path):
    put(
        tmp_path,
        "a/1.jpg",
        "b/2.jpg",
        "c/notes.txt",
        "loose.jpg",
        "a/.hidden.jpg",
        "__MACOSX/a/._1.jpg",
        ".git/x/1.jpg",
    )
    listing = list_pictures(tmp_path)
    assert listing.paths == ("a/1.jpg", "b/2.jpg")
    assert listing.class_names == ("a", "b")
    homeless, empty, others = listing.remarks
    assert "loose.jpg" in homeless
    assert "folders without a picture: c" in empty
    assert "1 .txt" in others


def test_links_are_followed_and_circles_end(tmp_path: Path):
    put(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    put(tmp_path / "data", "a/0.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "broken.jpg").symlink_to(tmp_path / "nothing")
    listing = list_pictures(tmp_path / "data")
    assert listing.paths == ("a/0.jpg", "a/broken.jpg", "b/1.jpg", "b/2.jpg")
    assert listing.stamps[1].tolist() == [-1, -1]


@pytest.mark.parametrize("linking", ["a", "b"])
def test_a_link_to_another_class_gives_a_class_none_of_its_pictures(linking: str, tmp_path: Path):
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / linking / "more").symlink_to(tmp_path / ("b" if linking == "a" else "a"))
    assert by_class(tmp_path) == {"a": ["a/1.jpg"], "b": ["b/2.jpg"]}


def test_a_class_that_is_a_link_to_another_has_no_pictures_of_its_own(tmp_path: Path):
    put(tmp_path, "a/1.jpg", "c/2.jpg")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert by_class(tmp_path) == {"a": ["a/1.jpg"], "c": ["c/2.jpg"]}


@pytest.mark.parametrize("splits", [False, True])
def test_a_link_back_gives_a_class_no_pictures_of_others(splits: bool, tmp_path: Path):
    tops = ("train/", "test/") if splits else ("",)
    put(tmp_path, *(f"{top}{name}/1.jpg" for top in tops for name in "abc"))
    for top in tops:
        (tmp_path / top / "b" / "back").symlink_to(tmp_path / top)
        (tmp_path / top / "b" / "top").symlink_to(tmp_path)
    listing = list_pictures(tmp_path)
    assert listing.class_names == ("a", "b", "c")
    assert sorted(listing.labels.tolist()) == sorted([0, 1, 2] * len(tops))


def test_a_pipe_is_listed_but_never_opened(tmp_path: Path):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    assert list_pictures(tmp_path).stamps[1].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no pictures in it\nit should hold one folder per class"),
        (["a/readme.txt", "b/data.csv"], r"only other files \(1 \.txt, 1 \.csv\)"),
        (["1.jpg", "2.jpg"], "2 pictures lie in it directly, such as 1.jpg: there are no classes\nmake one folder"),
        (["only/1.jpg", "only/2.jpg"], "all 2 pictures are of one class, 'only'"),
        (["train/a/1.jpg", "test/a/1.jpg"], "one class, 'a'"),
        (["train/a/1.jpg", "train/b/1.jpg"], r"'train' is the only folder .*\n.* give --data .*/train; else put"),
    ],
)
def test_folders_without_a_choice_of_classes_are_refused(files: list[str], message: str, tmp_path: Path):
    put(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        list_pictures(tmp_path)


def test_what_is_neither_folder_nor_table_is_refused(tmp_path: Path):
    put(tmp_path, "pictures.zip")
    with pytest.raises(DataError, match=r"pictures\.zip: not a folder, nor a \.csv file"):
        list_pictures(tmp_path / "pictures.zip")
    with pytest.raises(DataError, match="no such folder"):
        list_pictures(tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        list_pictures(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(DataError, match=r"/b: cannot be read"):
            list_pictures(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o700)
