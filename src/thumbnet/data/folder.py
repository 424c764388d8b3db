"""One's own pictures: a folder with one folder per class, or a CSV file, as a data set with splits.

Where the pictures are not split already, a tenth of each class, at least one picture, is kept for the test, and
`data.validation` more for validation. Which ones follows from a hash of their pixels: no seed, no dependence on names,
order or machine, pictures that are added later move few others, and copies of one picture stay on one side.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from thumbnet.config import DataConfig
from thumbnet.data.dataset import ImageDataset, Splits, in_proportion
from thumbnet.data.listing import SPLITS, Listing, named
from thumbnet.data.picture_cache import DecodedPictures, decode_listing
from thumbnet.data.table import list_table
from thumbnet.data.tree import list_tree
from thumbnet.errors import DataError, UsageError
from thumbnet.files import expand_home
from thumbnet.printing import padded, printable, width_of

TEST_SHARE = 0.1
"""Share of each class kept for the test where the pictures are not split already."""

_LISTED_BAD = 20
_LISTED_CLASSES = 20
_TRAIN, _VALIDATION, _TEST = range(len(SPLITS))

Note = Callable[[str], None]


def load_own(config: DataConfig, cache: Path, note: Note) -> Splits:
    """Return the pictures of a folder or a CSV file, decoded at first use.

    Args:
        config: where they are, which size they become, what to keep for validation, whether to skip bad files.
        cache: folder that decoded pictures are kept in.
        note: gets lines for the user: class balance, bad files, copies.

    Raises:
        DataError: there are no usable pictures, or some cannot be read.
        UsageError: a number of pictures is asked for as validation split and there is one already, or none would be
            left to train on.
    """
    listing = list_pictures(Path(config.name))
    for remark in listing.remarks:
        note(f"{listing.name}: {printable(remark)}")
    decoded = decode_listing(listing, config.image_size, cache, note)
    good = _good(listing, decoded, skip_bad=config.skip_bad, note=note)
    if decoded.splits is not None and 0 < config.validation < 1 and (decoded.splits[good] == _VALIDATION).any():
        note(f"{listing.name}: has a validation split of its own, which is used instead of a share of the rest")
        config = dataclasses.replace(config, validation=0.0)
    splits = _assign(listing, decoded, good, config)
    for line in _balance(listing, decoded.labels, splits):
        note(line)
    for line in _copies(listing, decoded, splits):
        note(line)
    everything = ImageDataset(listing.name, listing.class_names, decoded.layout, [decoded.part])
    parts = [np.flatnonzero(splits == split) for split in range(len(SPLITS))]
    train, validation, test = (everything.take(part) if len(part) else None for part in parts)
    assert train is not None
    return Splits(train=train, validation=validation, test=test, fingerprint=_fingerprint(listing, decoded, parts))


def list_pictures(where: Path) -> Listing:
    """Return the pictures of a folder or a CSV file.

    Raises:
        DataError: there is none, there are fewer than two classes, or it is not clear what is meant.
        UsageError: the path begins with `~user`, and there is no such user.
    """
    where = expand_home(where).absolute()
    try:
        if where.is_dir():
            return list_tree(where)
        if where.suffix.lower() == ".csv":
            return list_table(where)
        problem = "not a folder, nor a .csv file" if where.exists() else "there is no such folder or file"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise DataError(f"{where}: {problem}\ngive --data a folder with one folder per class, a CSV file, or a known name")


def _good(listing: Listing, decoded: DecodedPictures, *, skip_bad: bool, note: Note) -> np.ndarray:
    """Return which records hold a picture, bool [n].

    Raises:
        DataError: some do not and they are not to be skipped, or none does.
    """
    good = np.ones(len(decoded.labels), np.bool_)
    if not decoded.bad:
        return good
    good[[number for number, *_ in decoded.bad]] = False
    count = f"{len(decoded.bad):,} of {len(listing):,} pictures cannot be read"
    lines = sorted(f"{decoded.part.keys[number]}: {reason}" for number, reason, _ in decoded.bad)
    for line in lines[:_LISTED_BAD]:
        note(f"  {printable(line)}")
    if len(lines) > _LISTED_BAD:
        note(f"  and {len(lines) - _LISTED_BAD:,} more")
    if not good.any():
        raise DataError(
            f"{listing.where}: none of the {len(listing):,} pictures can be read; listed above, and all of them in "
            f"{decoded.unreadable}"
        )
    if not skip_bad:
        raise DataError(
            f"{listing.where}: {count}; listed above, and all of them in {decoded.unreadable}\n"
            "mend or delete them, or go on without them: --skip-bad"
        )
    note(f"{listing.name}: {count}, going on without them; the list: {decoded.unreadable}")
    return good


def _assign(listing: Listing, decoded: DecodedPictures, good: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return the split of each record, an index in `SPLITS`, int64 [n]; -1 for what holds no picture.

    Raises:
        UsageError: a validation split is asked for and there is one already, or none would be left to train on.
        DataError: there is nothing to train on.
    """
    if decoded.splits is not None:
        splits = np.where(good, decoded.splits, -1)
        if config.validation and (splits == _VALIDATION).any():
            raise UsageError(
                f"--validation {config.validation:g}: {listing.where} has a validation split of its own\n"
                "leave the flag out to use that, or move it away"
            )
    else:
        splits = np.where(good, _TRAIN, -1)
        left = np.flatnonzero(good)
        sizes = _pictures_of_each_class(decoded.labels[left], decoded.digests[left], len(listing.class_names))
        held_out = hold_out(decoded.labels[left], decoded.digests[left], _tenth(sizes))
        splits[left[held_out]] = _TEST
    left = np.flatnonzero(splits == _TRAIN)
    if not len(left):
        raise DataError(f"{listing.where}: there is no picture to train on\nput pictures into its train split")
    if config.validation:
        count = config.validation_count(len(left))
        if not 0 < count < len(left):
            raise UsageError(
                f"--validation {config.validation:g}: that is {count:,} of {len(left):,} training pictures, "
                f"it must be from 1 to {len(left) - 1:,}"
            )
        sizes = _pictures_of_each_class(decoded.labels[left], decoded.digests[left], len(listing.class_names))
        count = max(round(count * int(sizes.sum()) / len(left)), 1)  # of different ones, whose copies go along
        held_out = hold_out(decoded.labels[left], decoded.digests[left], _leave_one(in_proportion(sizes, count), sizes))
        if not held_out.any():
            raise UsageError(
                f"--validation {config.validation:g}: no class of {listing.where} has two pictures to train on\n"
                "leave the flag out, or add pictures"
            )
        splits[left[held_out]] = _VALIDATION
    return splits


def hold_out(labels: np.ndarray, digests: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """Choose pictures of each class, the same ones every time, copies of one picture all or none.

    Args:
        labels: of the pictures, int64 [n].
        digests: hash of each picture's pixels, uint64 [n].
        quotas: how many different pictures of each class to choose, int64 [classes].

    Returns:
        Which are chosen, bool [n]: of each class those with the smallest digests.
    """
    different, first, which = np.unique(digests, return_index=True, return_inverse=True)
    classes = labels[first]  # of a picture with copies under several labels, the first
    order = np.lexsort((different, classes))
    starts = np.searchsorted(classes[order], np.arange(len(quotas)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - starts[classes[order]]
    chosen: np.ndarray = (rank < quotas[classes])[which]
    return chosen


def _pictures_of_each_class(labels: np.ndarray, digests: np.ndarray, classes: int) -> np.ndarray:
    """Return how many different pictures each class has, int64 [classes]."""
    _, first = np.unique(digests, return_index=True)
    return np.bincount(labels[first], minlength=classes)


def _tenth(sizes: np.ndarray) -> np.ndarray:
    """Return a tenth of each class, rounded, at least one where that leaves one."""
    tenths = np.rint(TEST_SHARE * sizes).astype(np.int64)
    return _leave_one(np.maximum(tenths, 1), sizes)


def _leave_one(quotas: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return quotas cut to leave every class at least one picture."""
    left: np.ndarray = np.minimum(quotas, np.maximum(sizes - 1, 0))
    return left


def _balance(listing: Listing, labels: np.ndarray, splits: np.ndarray) -> Iterator[str]:
    """Yield lines that show how many pictures each class has in each split."""
    counts = np.stack(
        [np.bincount(labels[splits == split], minlength=len(listing.class_names)) for split in range(len(SPLITS))], 1
    )
    used = [split for split in range(len(SPLITS)) if counts[:, split].any()]
    totals = ", ".join(f"{counts[:, split].sum():,} for {_purpose(split)}" for split in used)
    by_itself = ""
    if listing.splits is None:
        by_itself = "; a tenth of each class was set aside for the test"
        if SPLITS.index("test") not in used:
            by_itself = ", none for the test: no class has a picture to spare"
    yield f"{listing.name}: {len(listing.class_names):,} classes; {totals}{by_itself}"
    by_size = np.argsort(-counts.sum(1), kind="stable")
    half = _LISTED_CLASSES // 2
    shown = by_size if len(by_size) <= _LISTED_CLASSES else np.concatenate([by_size[:half], by_size[-half:]])
    width = max(width_of(printable(listing.class_names[label])) for label in shown)
    yield f"  {'':<{width}}" + "".join(f"  {SPLITS[split]:>10}" for split in used)
    for place, label in enumerate(shown):
        if len(by_size) > _LISTED_CLASSES and place == half:
            yield f"  ... {len(by_size) - _LISTED_CLASSES:,} more classes"
        numbers = "".join(f"  {counts[label, split]:>10,}" for split in used)
        yield f"  {padded(printable(listing.class_names[label]), width)}{numbers}"
    for split in used:
        missing = [printable(listing.class_names[label]) for label in np.flatnonzero(counts[:, split] == 0)]
        if missing:
            yield f"warning: {listing.name}: no pictures for {_purpose(split)} of {named(missing)}"


def _purpose(split: int) -> str:
    return ("training", "validation", "the test")[split]


def _copies(listing: Listing, decoded: DecodedPictures, splits: np.ndarray) -> Iterator[str]:
    """Yield warnings of pictures that are the same, pixel by pixel, where that matters."""
    used = np.flatnonzero(splits >= 0)
    for values, what in (
        (splits, "in two splits, so that figures will look better than they are"),
        (decoded.labels, "in two classes, one of which must be wrong"),
    ):
        order = used[np.lexsort((values[used], decoded.digests[used]))]
        before, after = order[:-1], order[1:]
        which = (decoded.digests[before] == decoded.digests[after]) & (values[before] != values[after])
        pairs = [
            " = ".join(printable(decoded.part.keys[number]) for number in pair)
            for pair in zip(before[which].tolist(), after[which].tolist(), strict=True)
        ]
        if pairs:
            yield f"warning: {listing.name}: the same picture {what}: {named(pairs)}"


def _fingerprint(listing: Listing, decoded: DecodedPictures, parts: list[np.ndarray]) -> str:
    """Return a hash of classes, labels and pixels of every split, in order."""
    state = hashlib.sha256(json.dumps(listing.class_names).encode())
    for part in parts:
        state.update(b"%d" % len(part))
        state.update(decoded.labels[part].tobytes())
        state.update(decoded.digests[part].tobytes())
    return state.hexdigest()
