"""The book's record reader: one file of records, one record at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from thumbnet.data.records import RecordFormat
from thumbnet.errors import DataError


class Record(NamedTuple):
    """One record: unpacks as `label, image`."""

    label: int
    image: np.ndarray
    """float32 [height, width, channels], values 0 to 255."""


class RecordReader:
    """Reads records of one file by their number, each by a seek; any number of readers may have the same file open.

        with RecordReader("cifar-10-batches-bin/data_batch_1.bin") as reader:
            label, image = reader.read(0)

    Training does not go through this: `ImageDataset` gathers whole batches.
    """

    def __init__(self, path: Path | str, layout: RecordFormat | None = None) -> None:
        """Open a file.

        Args:
            path: the file.
            layout: layout of every record; that of CIFAR-10 if None.

        Raises:
            DataError: the file is missing, empty, unreadable, or not a whole number of records.
        """
        self._path, self._layout = Path(path), layout or RecordFormat()
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: cannot read this data file: {error.strerror or error}") from error
        size = self._file.seek(0, 2)
        self._count, rest = divmod(size, self._layout.record_bytes)
        if rest or not self._count:
            self._file.close()
            raise DataError(self._layout.wrong_length(self._path, size))

    def __len__(self) -> int:
        """Number of records."""
        return self._count

    def read(self, index: int) -> Record:
        """Return a record.

        Args:
            index: its number in the file, from 0.

        Raises:
            IndexError: there is no such record.
            DataError: the file has become shorter since it was opened, or cannot be read.
            ValueError: the reader is closed.
        """
        if self._file.closed:
            raise ValueError(f"{self._path}: this reader is closed: open another one")
        if not 0 <= index < self._count:
            raise IndexError(f"{self._path}: there is no record {index}, they are numbered 0 to {self._count - 1}")
        size = self._layout.record_bytes
        try:
            self._file.seek(index * size)
            data = self._file.read(size)
        except OSError as error:
            raise DataError(f"{self._path}: cannot read record {index}: {error.strerror or error}") from error
        if len(data) < size:
            raise DataError(f"{self._path}: cut short at record {index} since it was opened: fetch or write it again")
        record_1 = np.frombuffer(data, np.uint8)[None]
        return Record(int(self._layout.labels(record_1)[0]), self._layout.images(record_1)[0].astype(np.float32))

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
