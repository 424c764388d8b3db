"""Street View House Numbers (Netzer et al. 2011): http://ufldl.stanford.edu/housenumbers/, cropped digits, 32x32.

The files are MATLAB's: `X`, uint8 [32, 32, 3, n], and `y`, [n, 1], where label 10 means the digit 0. They are converted
once into records, with label 0 for 0, and from then on the data set is one of records like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.dataset import ImageDataset, open_records
from thumbnet.data.description import Archive, Limits, RecordFile, RecordSet
from thumbnet.data.download import download
from thumbnet.data.lock import locked
from thumbnet.data.progress import transfer
from thumbnet.data.records import RecordFormat
from thumbnet.data.verify import check_files, file_matches, hashed, new_hash
from thumbnet.errors import DataError
from thumbnet.files import clear_leftovers, replace_file

FOLDER = "svhn"
"""Folder of the records, and of files fetched, in the cache."""
CLASS_NAMES = tuple(str(digit) for digit in range(10))
LAYOUT = RecordFormat(image_shape=(32, 32, 3), label_bytes=1)

_CONVERTED = "converted.json"
_RECORDS_AT_A_TIME = 4096

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MatFile:
    """A MATLAB file of digits."""

    archive: Archive
    """Where it is published, its size and hash."""
    images: int
    """Number of pictures in it."""

    @property
    def records(self) -> str:
        """Name of the file of its records."""
        return self.archive.name.removesuffix(".mat") + ".bin"


def _mat(split: str, images: int, size_bytes: int, sha256: str) -> MatFile:
    url = f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat"
    return MatFile(archive=Archive(url=url, size_bytes=size_bytes, digest=f"sha256:{sha256}"), images=images)


# Sizes and counts as published. There, files come without encryption, so the hashes are SHA-256, which nobody can
# forge; the MD5 in wide use are e26dedcc434d2e4c54c9b2d4a06d8373, eb5a983be6a315427106f1b164d9cef3 and
# a93ce644f1a588dc4d68dda5feec44a7.
TRAIN = _mat("train", 73_257, 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8")
TEST = _mat("test", 26_032, 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b")
EXTRA = _mat("extra", 531_131, 1_329_278_602, "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3")


@dataclass(frozen=True, kw_only=True)
class DigitSet:
    """Files to train on, and one to test on."""

    name: str
    """What `--data` calls it."""
    train: tuple[MatFile, ...]
    """Training files, in order."""
    test: MatFile
    """Test file."""

    @property
    def files(self) -> tuple[MatFile, ...]:
        """All files, training first."""
        return (*self.train, self.test)


def digit_sets() -> dict[str, DigitSet]:
    """Return the sets by name: `svhn`, and `svhn-extra` with the 531,131 easier pictures to train on too."""
    return {
        "svhn": DigitSet(name="svhn", train=(TRAIN,), test=TEST),
        "svhn-extra": DigitSet(name="svhn-extra", train=(TRAIN, EXTRA), test=TEST),
    }


def load_svhn(digits: DigitSet, root: Path, *, offline: bool, note: Note) -> tuple[ImageDataset, ImageDataset]:
    """Return training and test pictures, fetched and converted at first use.

    Arguments and errors are those of `find_or_convert`.
    """
    folder = find_or_convert(digits, root, offline=offline, note=note)
    train, test = (
        open_records(digits.name, CLASS_NAMES, LAYOUT, [folder / file.records for file in files])
        for files in (digits.train, (digits.test,))
    )
    return train, test


def find_or_convert(
    digits: DigitSet,
    root: Path,
    *,
    offline: bool,
    note: Note,
    repair: bool = False,
    limits: Limits | None = None,
) -> Path:
    """Return the folder that holds the records of a set, after fetching and converting its files if need be.

    Args:
        digits: the set.
        root: the cache; it, or the folder `svhn` in it, may hold the .mat files.
        offline: never touch the network.
        note: gets lines for the user.
        repair: convert anew what is damaged instead of raising.
        limits: how long the download may take.

    Raises:
        DataError: a file is damaged or not what it should be, no source has it, or the cache cannot be written.
    """
    folder = _folder(root)
    if not _damaged(digits, folder, repair=repair) and converted_set(digits, root) is not None:
        note(f"{digits.name}: from {folder}")
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f"{digits.name}: another process is fetching or converting it; waiting for that"
        with locked(folder / ".lock", waiting, note):
            clear_leftovers(folder)
            for name, problem in _damaged(digits, folder, repair=repair).items():
                note(f"{problem}; it will be made anew")
                (folder / name).unlink()
            converted = {file.name for file in _converted_files(digits, folder).files}
            for file in digits.files:
                if file.records not in converted:
                    with _mat_file(file, root, folder, offline=offline, note=note, limits=limits or Limits()) as path:
                        _convert(path, file, folder, note)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot write to the data folder: {error.strerror or error}.\n"
            "Make room or make it writable, or choose another folder with --data-dir."
        ) from error
    note(f"{digits.name}: from {folder}")
    return folder


def converted_set(digits: DigitSet, root: Path) -> RecordSet | None:
    """Return the records of a set as a data set whose files can be checked; None if they are not all there yet."""
    dataset = _converted_files(digits, _folder(root))
    return dataset if len(dataset.files) == len(digits.files) else None


def _converted_files(digits: DigitSet, folder: Path) -> RecordSet:
    """Return those files of a set that are converted as a data set whose files can be checked."""
    digests = _read_converted(folder)
    train, test = (
        tuple(
            RecordFile(name=file.records, records=file.images, digest=digests[file.records])
            for file in files
            if file.records in digests and (folder / file.records).exists()
        )
        for files in (digits.train, (digits.test,))
    )
    return RecordSet(
        name=digits.name,
        class_names=CLASS_NAMES,
        layout=LAYOUT,
        folder=FOLDER,
        train=train,
        test=test,
        archive=digits.test.archive,
    )


def _folder(root: Path) -> Path:
    return root if root.name == FOLDER else root / FOLDER


def _damaged(digits: DigitSet, folder: Path, *, repair: bool) -> dict[str, str]:
    """Return the files of records that are not as they were written -> what is wrong with them.

    Raises:
        DataError: there is one, and it is not to be repaired.
    """
    reports = check_files(_converted_files(digits, folder), folder)
    problems = {report.path.name: report.problem for report in reports if report.problem}
    if problems and not repair:
        raise DataError(
            f"{next(iter(problems.values()))}.\n"
            f"`thumbnet data download {digits.name}` makes it anew from the .mat file, fetched if need be."
        )
    return problems


def _read_converted(folder: Path) -> dict[str, str]:
    """Return the files of records that were written here -> their digests; none if that cannot be read."""
    try:
        converted = json.loads((folder / _CONVERTED).read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in converted.items()}
    except (OSError, ValueError, AttributeError):
        return {}


@contextmanager
def _mat_file(file: MatFile, root: Path, folder: Path, *, offline: bool, note: Note, limits: Limits) -> Iterator[Path]:
    """Give the verified .mat file: one that is at hand, or one that is fetched and deleted afterwards.

    Raises:
        DataError: the one at hand is not the published one, or it cannot be fetched.
    """
    archive = file.archive
    for place in dict.fromkeys((folder, root)):
        at_hand = place / archive.name
        if at_hand.exists():
            try:
                problem = _problem(at_hand, archive)
            except OSError as error:
                raise DataError(
                    f"{at_hand}: cannot be read: {error.strerror or error}\nmake it readable, or move it away"
                ) from error
            if problem:
                raise DataError(f"{at_hand}: {problem}\nreplace it by the file from {archive.url}, or delete it")
            yield at_hand
            return
    advice = f"Try again where there is a network, or put {archive.name} from {archive.url} into {root}."
    if offline:
        raise DataError(f"{archive.name} is not in {folder}, and --offline forbids to fetch it.\n{advice}")
    partial = folder / f".part-{archive.name}"
    note(f"{archive.name}: fetching {archive.url} ({archive.size_bytes / 1e6:,.0f} MB)")
    try:
        with transfer(archive.name, archive.size_bytes, note) as advance:
            resumed = partial.exists()
            download(archive, partial, limits, advance=advance, note=note)
            if resumed and _problem(partial, archive):
                note(f"{archive.name}: what an earlier transfer had left is damaged; fetching all of it again")
                partial.unlink()
                advance(-archive.size_bytes)
                download(archive, partial, limits, advance=advance, note=note)
    except DataError as error:
        raise DataError(f"{archive.url}: {error}.\n{advice}") from error
    problem = _problem(partial, archive)
    if problem:
        partial.unlink()
        raise DataError(f"{archive.url}: {problem}.\n{advice}")
    yield partial
    partial.unlink()


def _problem(path: Path, archive: Archive) -> str | None:
    """Return why a file is not the published one, None if it is."""
    size = path.stat().st_size
    if size != archive.size_bytes:
        return f"{size:,} bytes, expected {archive.size_bytes:,}: cut short, or another file"
    if not file_matches(path, archive.digest):
        return f"its {archive.digest.partition(':')[0].upper()} is not that of the published file: damaged"
    return None


def _convert(path: Path, file: MatFile, folder: Path, note: Note) -> None:
    """Write the records of a .mat file, and their digest into the file that keeps those.

    Raises:
        DataError: it is no MATLAB file of digits.
    """
    note(f"{file.archive.name}: converting {file.images:,} pictures, which is done once")
    images_HWCN, labels = read_mat(path, file.images)
    parts = (slice(start, start + _RECORDS_AT_A_TIME) for start in range(0, file.images, _RECORDS_AT_A_TIME))
    records = (
        LAYOUT.pack(images_HWCN[..., part].transpose(3, 0, 1, 2), labels[part]).reshape(-1).data for part in parts
    )
    state = new_hash("sha256:")
    replace_file(folder / file.records, hashed(records, state))
    converted = _read_converted(folder) | {file.records: f"sha256:{state.hexdigest()}"}
    replace_file(folder / _CONVERTED, [json.dumps(converted, indent=1).encode()])


def read_mat(path: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures, uint8 [32, 32, 3, n], and labels, int64 [n] with 0 for the digit 0, of a MATLAB file.

    Args:
        path: the file.
        images: how many pictures it should hold.

    Raises:
        DataError: it is no MATLAB file, or its variables are not those; names the first that is wrong.
    """
    # Slow to import, and needed but once.
    from scipy.io import loadmat, whosmat

    try:
        present = {name: f"{kind} {list(shape)}" for name, shape, kind in whosmat(path)}
        variables: dict[str, Any] = loadmat(path, variable_names=["X", "y"])
    except NotImplementedError as error:  # version 7.3 is another format, HDF5
        raise DataError(f"{path}: a MATLAB file of version 7.3\nsave it in version 7 or older") from error
    except Exception as error:  # the reader raises whatever it stumbles over
        raise DataError(f"{path}: not a MATLAB file, or damaged: {error}\nfetch it again") from error
    for name, shape, kinds in (("X", (*LAYOUT.image_shape, images), "u"), ("y", (images, 1), "uif")):
        value = variables.get(name)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind not in kinds:
            have = f"it is {present[name]}" if name in present else f"it has only {', '.join(present) or 'nothing'}"
            what = "uint8" if name == "X" else "numbers"
            raise DataError(f"{path}: the variable {name} should be {what} {list(shape)}, {have}")
    images_HWCN, labels = variables["X"], variables["y"][:, 0]
    wrong = np.flatnonzero(~np.isin(labels, np.arange(1, len(CLASS_NAMES) + 1)))
    if len(wrong):
        raise DataError(
            f"{path}: the variable y has {labels[wrong[0]]} for picture {wrong[0]:,}, expected 1 to 10 (10 is digit 0)"
        )
    return images_HWCN, labels.astype(np.int64) % 10
