"""Pictures in folders: one folder per class, or one folder per split and in each one folder per class.

flowers/daisy/1.jpg            flowers/train/daisy/1.jpg
flowers/tulip/red/7.png        flowers/val/tulip/7.png
                               flowers/test/rose/3.webp

Pictures may lie at any depth below the folder of their class.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from thumbnet.data.decode import SUFFIXES
from thumbnet.data.listing import SPLIT_NAMES, Listing, make_listing, named, stamp_of
from thumbnet.errors import DataError

_NOT_OURS = {"__MACOSX", "@eaDir"}  # what archivers and file servers leave in folders, beside hidden files


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


def list_tree(root: Path) -> Listing:
    """Return the pictures of a folder.

    Raises:
        DataError: there is none, there are fewer than two classes, or it is not clear what is meant.
    """
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
    tops = sorted(set(found.classes))
    if not split_folders and all(name.lower() in SPLIT_NAMES for name in tops):
        raise DataError(_not_splits(root, tops))
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
    own: a set of vehicles may have a class `train`. One that holds neither folders nor pictures does not count.

    Raises:
        DataError: splits and other folders with pictures lie side by side, two folders are the same split, or one
            holds pictures of no class.
    """
    names = [entry.name for entry in _entries(root) if entry.is_dir()]
    holds = {name: _holds(root / name) for name in names if name.lower() in SPLIT_NAMES}
    splits = {name: SPLIT_NAMES[name.lower()] for name, held in holds.items() if held.folders or held.pictures}
    if 0 not in splits.values() or len(splits) < 2:
        return {}
    if any(not holds[name].folders for name in splits):
        if any(holds[name].folders and not holds[name].pictures for name, split in splits.items() if split == 0):
            raise DataError(_not_splits(root, list(splits)))
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


class _Held(NamedTuple):
    """What lies in a folder directly."""

    folders: bool
    pictures: bool


def _holds(folder: Path) -> _Held:
    entries = [(entry.is_dir(), Path(entry.name).suffix.lower()) for entry in _entries(folder)]
    return _Held(
        folders=any(is_folder for is_folder, _ in entries),
        pictures=any(not is_folder and kind in SUFFIXES for is_folder, kind in entries),
    )


def _walk_classes(root: Path, split_folder: str, split: int, found: _Found) -> None:
    """Add the pictures of each class's folder, at any depth below it."""
    # A link in a class's folder back to these, or to another class, would make the pictures of others its own.
    walked = {_identity(root.stat()), _identity((root / split_folder).stat())}
    entries = _entries(root / split_folder)
    seen = walked | {_identity(entry.stat()) for entry in entries if entry.is_dir()}
    start = f"{root}/"
    for entry in entries:
        if not entry.is_dir():
            kind = Path(entry.name).suffix.lower()
            if kind in SUFFIXES:
                found.homeless.append(entry.path.removeprefix(start))
            else:
                found.others[kind] += 1
            continue
        before = len(found.paths)
        anew = (identity := _identity(entry.stat())) not in walked
        walked.add(identity)
        for path, stamp in _pictures_in(Path(entry.path), seen, found.others) if anew else ():
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
    identity = _identity(folder.stat())
    if identity not in seen:
        seen.add(identity)
        yield from _pictures_in(folder, seen, others)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Return what a folder is the same by, whatever links lead to it."""
    return status.st_dev, status.st_ino


def _pictures_in(
    folder: Path, seen: set[tuple[int, int]], others: Counter[str]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield what `walk_pictures` does, of a folder that is not asked whether it has been seen."""
    for entry in _entries(folder):
        if entry.is_dir():
            yield from walk_pictures(Path(entry.path), seen, others)
        elif (kind := Path(entry.name).suffix.lower()) in SUFFIXES:
            yield entry.path, stamp_of(entry)
        else:
            others[kind] += 1


def _not_splits(root: Path, names: Sequence[str]) -> str:
    """Return the message for folders that are called like splits, and cannot be used as such."""
    if len(names) == 1:
        return (
            f"{root}: '{names[0]}' is the only folder with pictures in it: neither several classes nor several splits\n"
            f"if its folders are the classes, give --data {root / names[0]}; else put another split or class beside it"
        )
    return (
        f"{root}: {', '.join(names)} look like splits of the data: these are train and val or test, "
        "with one folder per class in each\n"
        "make such folders and move the pictures into them, move away what has no classes, or rename what is a class"
    )


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


def _endings(others: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind or 'without an ending'}" for kind, count in others.most_common(5))
