"""Fixed-length records: one or two label bytes, then the picture, channel after channel, each row by row."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thumbnet.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RecordFormat:
    """Layout of one record; the CIFAR-10 release of 2009 is the default."""

    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width, channels."""
    label_bytes: int = 1
    """Bytes before the picture, each a label: 1, or 2 where a coarse label comes first (CIFAR-100)."""
    coarse: bool = False
    """Whether, of 2 labels, the coarse one counts, rather than the fine one."""
    wide: bool = False
    """Whether 2 label bytes are one number instead, the high byte first: for more than 256 classes."""

    @property
    def label_byte(self) -> int:
        """Which byte of a record is its label, or the low byte of it."""
        return 0 if self.coarse else self.label_bytes - 1

    @property
    def image_bytes(self) -> int:
        """Bytes of one picture."""
        return math.prod(self.image_shape)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return self.label_bytes + self.image_bytes

    def images(self, records: np.ndarray) -> np.ndarray:
        """Return the pictures of raw records, uint8 [n, record_bytes] -> [n, H, W, C], as a view."""
        height, width, channels = self.image_shape
        images_NCHW = records[:, self.label_bytes :].reshape(len(records), channels, height, width)
        return images_NCHW.transpose(0, 2, 3, 1)

    def labels(self, records: np.ndarray) -> np.ndarray:
        """Return the labels of raw records, uint8 [n, record_bytes] -> int64 [n]."""
        labels = records[:, self.label_byte].astype(np.int64)
        return 256 * records[:, 0].astype(np.int64) + labels if self.wide else labels

    def pack(self, images_NHWC: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return raw records, uint8 [n, record_bytes], of pictures [n, H, W, C] and labels [n] or [n, label_bytes]."""
        records = np.empty((len(images_NHWC), self.record_bytes), np.uint8)
        labels = labels.astype(">u2").view(np.uint8) if self.wide else labels
        records[:, : self.label_bytes] = labels.reshape(len(records), self.label_bytes)
        self.images(records)[:] = images_NHWC
        return records

    def wrong_length(self, path: Path, size_bytes: int) -> str:
        """Return what to say of a file that is empty or not a whole number of records long."""
        whole, rest = divmod(size_bytes, self.record_bytes)
        return (
            f"{path}: {size_bytes:,} bytes are not a whole number of records of {self.record_bytes:,} bytes; "
            f"record {whole} (byte offset {whole * self.record_bytes:,}) has {rest:,}.\n"
            "The file is cut short or has another format: fetch or write it again."
        )


@dataclass(frozen=True, kw_only=True)
class RecordPart:
    """The records of one file, or of none: in memory."""

    name: str
    """What a key calls these records: the file's name."""
    where: str
    """What an error calls them: the file's path."""
    records: np.ndarray
    """uint8 [n, record_bytes], mapped or in memory."""
    keys: Sequence[str] = ()
    """What each record is called; empty where that is the file's name and the record's number."""
    release: Callable[[], None] = lambda: None
    """Give mapped pages back; see `ImageDataset.release`."""


def map_records(path: Path, layout: RecordFormat, *, keys: Sequence[str] = ()) -> RecordPart:
    """Map a file of records into memory; nothing is read yet.

    Args:
        path: the file.
        layout: layout of every record.
        keys: what each record is called, if not by the file's name and the record's number.

    Raises:
        DataError: the file is missing, empty, unreadable, or not a whole number of records.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            whole, rest = divmod(size, layout.record_bytes)
            if rest or not whole:
                raise DataError(layout.wrong_length(path, size))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: cannot read this data file: {error.strerror or error}") from error
    records = np.frombuffer(mapped, np.uint8).reshape(whole, layout.record_bytes)
    return RecordPart(
        name=path.name,
        where=str(path),
        records=records,
        keys=keys,
        release=lambda: mapped.madvise(mmap.MADV_DONTNEED),
    )
