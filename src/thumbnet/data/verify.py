"""Are the files of a data set what was published? Sizes always, hashes once and when asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thumbnet.data.description import RecordFile, RecordSet
from thumbnet.data.records import map_records
from thumbnet.errors import DataError
from thumbnet.files import Pieces

MARKER = ".verified.json"
"""File beside the records that says which of them were hashed, by size and time of last change."""
CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What became of checking one file."""

    path: Path
    """The file."""
    records: int
    """Records it should hold."""
    problem: str | None
    """What is wrong with it, naming record and offset where there is one; None if nothing is."""


def new_hash(digest: str) -> hashlib._Hash:
    """Return an empty hash of the kind of ``sha256:...`` or ``md5:...``; MD5 tells damage, not malice."""
    return hashlib.new(digest.partition(":")[0], usedforsecurity=False)


def hashed(pieces: Pieces, state: hashlib._Hash) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a file, each taken into the hash on its way."""
    for piece in pieces:
        state.update(piece)
        yield piece


def digest_matches(state: hashlib._Hash, digest: str) -> bool:
    """Return whether a finished hash is that of ``<kind>:<hex>``."""
    return state.hexdigest() == digest.partition(":")[2]


def file_matches(path: Path, digest: str, tick: Callable[[int], None] = lambda _: None) -> bool:
    """Return whether a file has this hash; `tick` gets the bytes read since the last call."""
    state = new_hash(digest)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
            tick(len(chunk))
    return digest_matches(state, digest)


def missing_files(dataset: RecordSet, folder: Path) -> list[str]:
    """Return the names of the files that are not in a folder."""
    return [file.name for file in dataset.files if _mark(folder / file.name, file) is None]


def check_files(
    dataset: RecordSet, folder: Path, *, rehash: bool = False, tick: Callable[[int], None] = lambda _: None
) -> list[FileReport]:
    """Check every file of a data set.

    Args:
        dataset: what the files should be.
        folder: where they are.
        rehash: hash every file; else only those that were not hashed since they last changed.
        tick: gets the bytes of each file or piece checked.

    Returns:
        One report per file.
    """
    before = _read_marks(folder)
    reports, marks = [], dict(before)  # other data sets may have files, and marks, in this folder
    for file in dataset.files:
        path = folder / file.name
        mark = _mark(path, file)
        marked = marks.pop(file.name, None)
        if mark is not None and marked == mark and not rehash:
            problem = None
            tick(dataset.size_bytes(file))
        else:
            problem = _problem(path, dataset, file, tick)
        if problem is None and mark is not None:
            marks[file.name] = mark
        reports.append(FileReport(path=path, records=file.records, problem=problem))
    if marks != before:
        with contextlib.suppress(OSError):  # a folder that cannot be written is checked again each time
            (folder / MARKER).write_text(json.dumps(marks, indent=1), encoding="utf-8")
    return reports


def _mark(path: Path, file: RecordFile) -> list[object] | None:
    """Return what tells this state of a file from another, None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, file.digest]


def _read_marks(folder: Path) -> dict[str, object]:
    """Return the marks of the files hashed before; none if they cannot be read."""
    try:
        marks = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def _problem(path: Path, dataset: RecordSet, file: RecordFile, tick: Callable[[int], None]) -> str | None:
    """Return what is wrong with a file, by its size, its hash and its labels, None if nothing is."""
    expected = dataset.size_bytes(file)
    try:
        if path.exists() and not path.is_file():
            return f"{path}: is {'a folder' if path.is_dir() else 'no regular file'}, not a file of records"
        size = path.stat().st_size
        if size != expected:
            record, offset = divmod(min(size, expected), dataset.layout.record_bytes)
            place = f"ends in record {record} after {offset:,} of its {dataset.layout.record_bytes:,} bytes"
            if size > expected:
                place = f"goes on after its last record, {record - 1}"
            return f"{path}: {size:,} bytes, expected {expected:,} ({file.records:,} records): {place}"
        if file_matches(path, file.digest, tick):
            return None
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    kind, _, expected_hex = file.digest.partition(":")
    return _bad_record(path, dataset) or (
        f"{path}: {kind.upper()} is not {expected_hex}, though size and labels are plausible: "
        "some of its records were changed or damaged"
    )


def _bad_record(path: Path, dataset: RecordSet) -> str | None:
    """Return a message about the first record that cannot be right, None if each could be."""
    try:
        records = map_records(path, dataset.layout).records
    except DataError as error:
        return str(error)
    labels, classes = dataset.layout.labels(records), len(dataset.class_names)
    bad = np.flatnonzero((labels >= classes) | ~records.any(axis=1))
    if not len(bad):
        return None
    record = int(bad[0])
    offset = record * dataset.layout.record_bytes
    more = f"; {len(bad) - 1:,} more records are bad" if len(bad) > 1 else ""
    if labels[record] < classes:
        return f"{path}: record {record} (byte offset {offset:,}) is empty, nothing but zeros{more}"
    offset += dataset.layout.label_byte
    return (
        f"{path}: record {record} (byte offset {offset:,}) has label {labels[record]}, "
        f"expected 0 to {classes - 1}{more}"
    )
