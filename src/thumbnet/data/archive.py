"""Named members of a .tar.gz as bounded streams; nothing is ever extracted to where a member's name points."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import IO

from thumbnet.errors import DataError

INFLATED_LIMIT_BYTES = 512 * 2**20
"""Most an archive may inflate to: the largest that is read here has 186 MB in it."""


def read_members(path: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the named members of a .tar.gz, in the order they are stored, each as a stream to be read at once.

    Args:
        path: the archive.
        limits: name of a member -> most bytes it may have; other members are passed over, whatever their names.

    Raises:
        DataError: the archive is damaged; a named member is missing, comes twice, is not a regular file, or is larger
            than allowed; or the archive inflates to more than `INFLATED_LIMIT_BYTES`.
    """
    try:
        with gzip.open(path) as inflated:
            bounded = _Bounded(inflated, INFLATED_LIMIT_BYTES)
            with tarfile.open(fileobj=bounded, mode="r|") as tar:
                yield from _named(tar, path, limits)
            while bounded.read(2**20):  # up to the checksum, which is behind the last byte
                pass
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path}: not a whole .tar.gz archive: {error}") from error


def _named(tar: tarfile.TarFile, path: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the members in `limits`; raises `DataError` for what `read_members` refuses."""
    seen: set[str] = set()
    for member in tar:
        if member.name not in limits:
            continue
        if member.name in seen:
            raise DataError(f"{path}: holds '{member.name}' twice")
        if not member.isreg():
            raise DataError(f"{path}: '{member.name}' is a link, folder or device, expected a regular file")
        if member.size > limits[member.name]:
            raise DataError(
                f"{path}: '{member.name}' has {member.size:,} bytes, expected at most {limits[member.name]:,}"
            )
        stream = tar.extractfile(member)
        assert stream is not None
        seen.add(member.name)
        yield member.name, stream
    missing = sorted(set(limits) - seen)
    if missing:
        raise DataError(f"{path}: does not hold '{missing[0]}'")


class _Bounded(RawIOBase):
    """A stream that ends in `DataError` once more was read than an honest archive can hold."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left, self._limit = stream, limit, limit

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._stream.name}: inflates to more than {self._limit:,} bytes")
        return data
