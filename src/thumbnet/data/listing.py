"""Which pictures there are, and of which class: from a folder with one folder per class, or from a CSV file.

    flowers/daisy/1.jpg            flowers/train/daisy/1.jpg        path,label,split
    flowers/tulip/red/7.png        flowers/val/tulip/7.png          img/1.jpg,daisy,train
                                   flowers/test/rose/3.webp         img/7.png,tulip,test

Nothing is decoded here. Labels come from the names of the classes of all splits together, so that a class that one
split lacks moves no other.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from thumbnet.data.decode import SUFFIXES
from thumbnet.errors import DataError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
"""Names of folders, and values of a CSV file's column, that mean a split -> index in `SPLITS`."""
MAX_CLASSES = 2**16
"""A label has two bytes."""

_NOT_OURS = {"__MACOSX", "@eaDir"}  # what archivers and file servers leave in folders, beside hidden files
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Pictures with labels, not decoded; in the order of their paths."""

    name: str
    """What messages call the set."""
    where: Path
    """The folder or the CSV file, absolute."""
    root: Path
    """What the paths are relative to."""
    class_names: tuple[str, ...]
    """One per label: sorted as text, or as numbers if all are numbers."""
    paths: tuple[str, ...]
    """Of the pictures, relative to `root`."""
    labels: np.ndarray
    """int64 [n]."""
    splits: np.ndarray | None
    """Index in `SPLITS` of each picture, int64 [n]; None where the set is not split."""
    stamps: np.ndarray
    """Size in bytes and time of last change in ns (`stamp_of`), int64 [n, 2]."""
    remarks: tuple[str, ...] = ()
    """What a person should know about the set: what was passed over."""

    def __len__(self) -> int:
        return len(self.paths)


def is_own_data(name: str) -> bool:
    """Return whether the name of a data set means a folder of pictures or a CSV file, rather than a known set."""
    named = name.startswith(("~", ".")) or "/" in name or name.lower().endswith(".csv")
    return named or (bool(name) and Path(name).is_dir())


def list_pictures(where: Path) -> Listing:
    """Return the pictures of a folder or a CSV file.

    Raises:
        DataError: there is none, there are fewer than two classes, or it is not clear what is meant.
    """
    where = where.expanduser().absolute()
    if where.is_dir():
        return _list_folder(where)
    if where.suffix.lower() == ".csv":
        from thumbnet.data.table import list_table

        return list_table(where)
    problem = "not a folder, nor a .csv file" if where.exists() else "there is no such folder or file"
    raise DataError(f"{where}: {problem}\ngive --data a folder with one folder per class, a CSV file, or a known name")


@dataclass(kw_only=True)
class _Found:
    """What a walk through folders has come by so far."""

    paths: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    homeless: list[str] = field(default_factory=list)
    """Pictures that lie in no class's folder."""
    empty: list[str] = field(default_factory=list)
    """Class folders without a picture."""


def _list_folder(root: Path) -> Listing:
    found = _Found()
    try:
        split_folders = _split_folders(root)
        if split_folders:
            for folder, split in split_folders.items():
                _walk_classes(root, folder, split, found)
        else:
            _walk_classes(root, "", 0, found)
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be read: {error.strerror or error}\nmake it readable, or move it away"
        ) from error
    if not found.paths:
        raise DataError(_nothing_there(root, found))
    return make_listing(
        root,
        root,
        found.paths,
        found.classes,
        found.splits if split_folders else None,
        found.stamps,
        _remarks(found),
    )


def _split_folders(root: Path) -> dict[str, int]:
    """Return the folders that are splits -> index in `SPLITS`; none where the folders are the classes themselves.

    They are splits if one of them means training and another one validation or test, and each holds folders of its
    own: a set of vehicles may have a class `train`.

    Raises:
        DataError: splits and other folders with pictures lie side by side, or two folders are the same split.
    """
    names = [entry.name for entry in _entries(root) if entry.is_dir()]
    splits = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    nested = all(any(entry.is_dir() for entry in _entries(root / name)) for name in splits)
    if 0 not in splits.values() or len(splits) < 2 or not nested:
        return {}
    if len(set(splits.values())) < len(splits):
        raise DataError(f"{root}: {', '.join(splits)}: two of these folders are the same split\nmove one of them away")
    strange = [
        name for name in names if name not in splits and next(walk_pictures(root / name, set(), Counter()), None)
    ]
    if strange:
        raise DataError(
            f"{root}: {', '.join(splits)} look like splits of the data, {strange[0]} does not, and holds pictures too\n"
            f"move {strange[0]} away, or into the splits; or, if all of them are classes, into one folder per class"
        )
    return splits


def _walk_classes(root: Path, split_folder: str, split: int, found: _Found) -> None:
    """Add the pictures of each class's folder, at any depth below it."""
    seen: set[tuple[int, int]] = set()
    start = f"{root}/"
    for entry in _entries(root / split_folder):
        if not entry.is_dir():
            kind = Path(entry.name).suffix.lower()
            if kind in SUFFIXES:
                found.homeless.append(entry.path.removeprefix(start))
            else:
                found.others[kind] += 1
            continue
        before = len(found.paths)
        for path, stamp in walk_pictures(Path(entry.path), seen, found.others):
            found.paths.append(path.removeprefix(start))
            found.classes.append(entry.name)
            found.splits.append(split)
            found.stamps.append(stamp)
        if len(found.paths) == before:
            found.empty.append(entry.path.removeprefix(start))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name, without hidden files and what other programs leave."""
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _NOT_OURS]
    return sorted(kept, key=lambda entry: entry.name)


def walk_pictures(
    folder: Path, seen: set[tuple[int, int]], others: Counter[str]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path and stamp of the pictures at any depth below a folder; `others` counts other files by their ending.

    Args:
        folder: where to look.
        seen: folders walked so far, by device and inode: links may make circles.
        others: is added to.
    """
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        if entry.is_dir():
            yield from walk_pictures(Path(entry.path), seen, others)
        elif (kind := Path(entry.name).suffix.lower()) in SUFFIXES:
            yield entry.path, stamp_of(entry)
        else:
            others[kind] += 1


def stamp_of(file: os.DirEntry[str] | Path) -> tuple[int, int]:
    """Return size and time of last change of a regular file; (-1, -1) for anything else, such as a broken link.

    The time is that of the inode (ctime), which nobody can set: it tells of a file that was replaced by another of the
    same size and time of writing (`cp -p`, `rsync`), and of one that was made readable.
    """
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return (status.st_size, status.st_ctime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


def make_listing(
    where: Path,
    root: Path,
    paths: Sequence[str],
    classes: Sequence[str],
    splits: Sequence[int] | None,
    stamps: Sequence[tuple[int, int]],
    remarks: Iterable[str] = (),
) -> Listing:
    """Return a listing, in the order of the paths, of pictures whose classes are known by name.

    Raises:
        DataError: there are fewer than two classes, or more than a label can tell apart.
    """
    # The same name may be stored in two ways, by systems that decompose accented letters and those that do not.
    names = [unicodedata.normalize("NFC", name) for name in classes]
    known = set(names)
    class_names = sorted(known, key=int) if all(map(_is_number, known)) else sorted(known)
    if len(class_names) < 2:
        raise DataError(
            f"{where}: all {len(paths):,} pictures are of one class, '{class_names[0]}'\n"
            "there is nothing to tell apart: add pictures of another class"
        )
    if len(class_names) > MAX_CLASSES:
        raise DataError(f"{where}: {len(class_names):,} classes, at most {MAX_CLASSES:,}\nmerge some of them")
    label_of = {name: label for label, name in enumerate(class_names)}
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return Listing(
        name=where.stem if where.suffix.lower() == ".csv" else where.name,
        where=where,
        root=root,
        class_names=tuple(class_names),
        paths=tuple(paths[i] for i in order),
        labels=np.array([label_of[names[i]] for i in order], np.int64),
        splits=None if splits is None else np.array([splits[i] for i in order], np.int64),
        stamps=np.array([stamps[i] for i in order], np.int64).reshape(-1, 2),
        remarks=tuple(remarks),
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _nothing_there(root: Path, found: _Found) -> str:
    """Return the message for a folder without a single picture in a class's folder."""
    if found.homeless:
        return (
            f"{root}: {len(found.homeless):,} pictures lie in it directly, such as {found.homeless[0]}: "
            "there are no classes\nmake one folder per class in it and move the pictures into these"
        )
    others = f", only other files ({_endings(found.others)})" if found.others else ""
    return (
        f"{root}: no pictures in it{others}\n"
        "it should hold one folder per class, and these JPEG, PNG, WebP or BMP files: .jpg .jpeg .png .webp .bmp"
    )


def _remarks(found: _Found) -> Iterator[str]:
    """Yield what was passed over."""
    if found.homeless:
        yield f"passed over, pictures that are in no class's folder: {named(found.homeless)}"
    if found.empty:
        yield f"passed over, folders without a picture: {named(found.empty)}"
    if found.others:
        yield f"passed over, files that are no pictures by their names: {_endings(found.others)}"


def named(things: Sequence[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(things) - _NAMED:,} more" if len(things) > _NAMED else ""
    return ", ".join(things[:_NAMED]) + more


def printable(text: str) -> str:
    """Return a file's name, or what came out of a file, without line breaks, control characters or broken letters."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _endings(others: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind or 'without an ending'}" for kind, count in others.most_common(5))
