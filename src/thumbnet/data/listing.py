"""A list of pictures of known classes, none decoded yet: what a folder (`tree`) or a CSV file (`table`) comes to.

Labels come from the names of the classes of all splits together, so that a class that one split lacks moves no other.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thumbnet.errors import DataError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
"""Names of folders, and values of a CSV file's column, that mean a split -> index in `SPLITS`."""
MAX_CLASSES = 2**13
"""Which class is taken for which is counted for every pair: 512 MiB."""

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
    return named or os.path.isdir(name)  # noqa: PTH112 - a Path raises where the name is too long for a file


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


def named(things: Sequence[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(things) - _NAMED:,} more" if len(things) > _NAMED else ""
    return ", ".join(things[:_NAMED]) + more
