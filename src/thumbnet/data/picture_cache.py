"""Pictures decoded once, kept as records in the cache.

cache/decoded/flowers-1f0c5a2b9d3e/
  records.bin      one record for each picture, in an order of chance, which is the same every time
  digests.bin      8 bytes for each record: a hash of its pixels
  index.json       the key that the pictures had, and which of them cannot be decoded, and why
  unreadable.txt   the latter by name, for a person; only if there are any

The folder in the cache goes by where the pictures are and the size they are decoded to, so a set that changes replaces
its records. Whether they still hold is told by a key: a hash of path, label, size and time of change of every picture.
That asks the file system about each file and opens none, so that a second start takes an instant, where hashing the
contents would read all of them each time. The time is one that nobody can set (see `listing.stamp_of`). Only a picture
that the disk refused, or that memory was too short for, is tried once more: the key does not tell when that is over.

The folder is filled beside its place, under a lock, and renamed into it: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.decode import PictureError, UnreadPictureError, decode_picture
from thumbnet.data.decode_pool import decode_all
from thumbnet.data.decode_worker import DIGEST_BYTES, Bad, Chunk, Job, record_layout
from thumbnet.data.listing import Listing
from thumbnet.data.lock import locked
from thumbnet.data.progress import transfer
from thumbnet.data.records import RecordFormat, RecordPart, map_records
from thumbnet.errors import DataError
from thumbnet.files import sync
from thumbnet.printing import printable

FORMAT = 1
"""Goes up when the same pictures would give other records."""

RECORDS, DIGESTS, INDEX, UNREADABLE = "records.bin", "digests.bin", "index.json", "unreadable.txt"
_ORDER_SEED = 2015

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DecodedPictures:
    """The records of a listing."""

    layout: RecordFormat
    """Layout of a record."""
    part: RecordPart
    """The records, mapped; a key is the path of the picture's file below the listing's root."""
    labels: np.ndarray
    """Label of each record, int64 [n]."""
    splits: np.ndarray | None
    """Split of each record, int64 [n], where the listing has splits."""
    digests: np.ndarray
    """Hash of each record's pixels, uint64 [n]."""
    bad: Bad
    """Records that hold no picture, and why."""
    unreadable: Path
    """File that lists the latter, if there are any."""


def decode_listing(listing: Listing, size: int, cache: Path, note: Note) -> DecodedPictures:
    """Return the records of some pictures, decoding them if that has not been done before.

    Args:
        listing: the pictures.
        size: side of the squares they become.
        cache: folder of the cache.
        note: gets lines for the user.

    Raises:
        DataError: the cache cannot be written.
    """
    # The order of the names would put whole classes one after the other, and a shuffling pool smaller than the set
    # could not mix them.
    numbers = np.random.Generator(np.random.Philox(key=_ORDER_SEED)).permutation(len(listing))
    folder = cache / "decoded" / _folder_name(listing, size)
    key = _key(listing, size)
    bad = _kept(listing, numbers, size, folder, key)
    if bad is None:
        bad = _decode_under_lock(listing, numbers, size, folder, key, note)
    paths, labels = [""] * len(listing), np.empty_like(listing.labels)
    for number, path in zip(numbers.tolist(), listing.paths, strict=True):
        paths[number] = path
    labels[numbers] = listing.labels
    splits = None
    if listing.splits is not None:
        splits = np.empty_like(listing.splits)
        splits[numbers] = listing.splits
    layout = record_layout(size)
    return DecodedPictures(
        layout=layout,
        part=map_records(folder / RECORDS, layout, keys=paths),
        labels=labels,
        splits=splits,
        digests=np.fromfile(folder / DIGESTS, np.uint64),
        bad=bad,
        unreadable=folder / UNREADABLE,
    )


def _folder_name(listing: Listing, size: int) -> str:
    """Return the name of a listing's folder in the cache: one for each place and size."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", listing.name).strip("-.")[:40] or "pictures"
    place = hashlib.sha256(os.fsencode(listing.where) + b"\0%d" % size).hexdigest()
    return f"{readable}-{place[:12]}"


def _key(listing: Listing, size: int) -> str:
    """Return what changes when the pictures, their labels, or how they are decoded do."""
    state = hashlib.sha256(b"%d\0%d\0" % (FORMAT, size))
    state.update("\0".join(listing.paths).encode(errors="surrogateescape"))
    state.update(listing.labels.tobytes())
    state.update(listing.stamps.tobytes())
    return state.hexdigest()


def _kept(listing: Listing, numbers: np.ndarray, size: int, folder: Path, key: str) -> Bad | None:
    """Return the pictures that cannot be decoded, if the records in the cache still hold; else None."""
    bad = _read_index(folder, key)
    if bad and (again := {number for number, _, passing in bad if passing}):
        paths = (path for number, path in zip(numbers.tolist(), listing.paths, strict=True) if number in again)
        if any(_can_be_read(listing.root / path, size) for path in paths):
            return None
    return bad


def _can_be_read(path: Path, size: int) -> bool:
    try:
        decode_picture(path, size)
    except UnreadPictureError:
        return False
    except PictureError:
        pass  # what is in it can be told now
    return True


def _read_index(folder: Path, key: str) -> Bad | None:
    """Return the pictures that cannot be decoded, if the records in the cache are those of this key; else None."""
    try:
        index: Any = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in index["sizes"].items())
        if index["key"] == key and whole:
            return [(int(number), str(reason), bool(passing)) for number, reason, passing in index["bad"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none yet, or damaged: it is made anew
    return None


def _decode_under_lock(listing: Listing, numbers: np.ndarray, size: int, folder: Path, key: str, note: Note) -> Bad:
    """Make the folder, unless another process has just done so."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"{listing.name}: another process is decoding the pictures; waiting for that"
        with locked(folder.parent / f".lock-{folder.name}", waiting, note):
            bad = _kept(listing, numbers, size, folder, key)
            return _fill(listing, numbers, size, folder, key, note) if bad is None else bad
    except OSError as error:
        megabytes = len(listing) * record_layout(size).record_bytes / 1e6
        raise DataError(
            f"{error.filename or folder}: cannot keep the decoded pictures: {error.strerror or error}.\n"
            f"Make room (they take {megabytes:,.0f} MB) or make it writable, or choose another folder with --data-dir."
        ) from error


def _fill(listing: Listing, numbers: np.ndarray, size: int, folder: Path, key: str, note: Note) -> Bad:
    """Decode into a folder beside, then put it into its place."""
    for leftover in folder.parent.glob(f".tmp-{folder.name}-*"):  # of a process that was killed; the lock says so
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        new = work / "new"
        new.mkdir()
        sizes = {RECORDS: len(listing) * record_layout(size).record_bytes, DIGESTS: len(listing) * DIGEST_BYTES}
        for name, length in sizes.items():
            _reserve(new / name, length)
        job = Job(root=str(listing.root), records=str(new / RECORDS), digests=str(new / DIGESTS), size=size)
        bad = _decode(listing, numbers, job, note)
        if bad:
            path_of = dict(zip(numbers.tolist(), listing.paths, strict=True))
            lines = sorted(f"{printable(path_of[number])}\t{printable(reason)}\n" for number, reason, _ in bad)
            (new / UNREADABLE).write_text("".join(lines), encoding="utf-8")
        (new / INDEX).write_text(json.dumps({"key": key, "sizes": sizes, "bad": bad}), encoding="utf-8")
        for path in (*new.iterdir(), new):
            sync(path)
        if folder.exists():
            folder.rename(work / "old")
        new.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return bad


def _decode(listing: Listing, numbers: np.ndarray, job: Job, note: Note) -> Bad:
    """Decode all pictures, showing how far it is."""
    chosen: Chunk = list(zip(numbers.tolist(), listing.labels.tolist(), listing.paths, strict=True))
    bytes_of = dict(zip(numbers.tolist(), np.maximum(listing.stamps[:, 0], 0).tolist(), strict=True))
    total = sum(bytes_of.values())
    note(f"{listing.name}: decoding {len(listing):,} pictures ({total / 2**20:,.0f} MiB), which is done once")
    with transfer("decoding", total, note) as advance:
        return decode_all(job, chosen, lambda chunk: advance(sum(bytes_of[number] for number, _, _ in chunk)))


def _reserve(path: Path, length: int) -> None:
    """Make a file of zeros that the disk has room for, rather than running out of it halfway through."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)
