"""Pictures with labels: mapped record files or records in memory behind one interface, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from thumbnet.config import DataConfig
from thumbnet.data.records import RecordFormat, RecordPart, map_records
from thumbnet.errors import DataError, UsageError


class ImageDataset:
    """Pictures uint8 [H, W, C] with labels, in the order of their files; pages are read when they are asked for."""

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        layout: RecordFormat,
        parts: Sequence[RecordPart],
        *,
        index: np.ndarray | None = None,
    ) -> None:
        """Describe a data set; reads nothing.

        Args:
            name: what messages call it.
            class_names: one per label, in label order.
            layout: layout of every record.
            parts: the records, one part per file.
            index: which records of all parts belong to the set, and in which order, int64 [n]; all of them if None.
        """
        self.name = name
        self.class_names = tuple(class_names)
        self.image_shape = layout.image_shape
        self._layout = layout
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part.records) for part in parts)])
        self._index = index

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        return f"<ImageDataset {self.name}: {len(self):,} images {size}, {len(self.class_names):,} classes>"

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._index is None else len(self._index)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of all examples, int64 [n]; the first use reads a page of every record.

        Raises:
            DataError: a label is out of range; names file, record and offset.
        """
        labels = np.concatenate([self._layout.labels(part.records) for part in self._parts])
        labels = labels if self._index is None else labels[self._index]
        self._check(labels, None)
        return labels

    def gather(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return some examples, copied out of the files.

        Args:
            indices: which examples, whole numbers [b], 0 to len - 1, in any order, repeats allowed.

        Returns:
            Pictures uint8 [b, H, W, C] (a strided view of a fresh channel-major copy) and labels int64 [b].

        Raises:
            DataError: a label is out of range; names file, record and offset.
            IndexError: an index is out of range.
        """
        indices = np.asarray(indices, np.int64)
        records = self._records(self._absolute(indices))
        labels = self._layout.labels(records)
        self._check(labels, indices)
        return self._layout.images(records), labels

    def key(self, index: int) -> str:
        """Return where an example comes from: its own file, or file and record number: ``data_batch_1.bin:123``."""
        part, record = self._locate(index)
        return part.keys[record] if part.keys else f"{part.name}:{record}"

    def files(self) -> dict[int, str]:
        """Return, in order, the examples at which another file begins, and that file's name."""
        absolute = np.arange(len(self)) if self._index is None else self._index
        parts = np.searchsorted(self._starts, absolute, side="right") - 1
        begins = np.flatnonzero(np.diff(parts, prepend=-1))
        return {int(index): self._parts[parts[index]].name for index in begins}

    def take(self, indices: np.ndarray) -> ImageDataset:
        """Return the data set of some of the examples, in the order given; copies no pictures and keeps the keys."""
        index = self._absolute(np.asarray(indices, np.int64))
        return ImageDataset(self.name, self.class_names, self._layout, self._parts, index=index)

    def release(self) -> None:
        """Give the mapped pages read so far back to the kernel, which may keep them cached; they come back when used.

        Reading through files larger than memory would else count as memory of this process.
        """
        for part in self._parts:
            part.release()

    def _absolute(self, indices: np.ndarray) -> np.ndarray:
        """Return the record numbers, over all parts, of some examples."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"{self.name}: indices {indices.min()}..{indices.max()} of a set of {len(self)}")
        return indices if self._index is None else self._index[indices]

    def _records(self, absolute: np.ndarray) -> np.ndarray:
        """Return a copy of some raw records, uint8 [b, record_bytes]."""
        if len(self._parts) == 1:
            return self._parts[0].records.take(absolute, axis=0)
        records = np.empty((len(absolute), self._layout.record_bytes), np.uint8)
        which = np.searchsorted(self._starts, absolute, side="right") - 1
        for number in np.unique(which):
            (rows,) = np.nonzero(which == number)
            records[rows] = self._parts[number].records.take(absolute[rows] - self._starts[number], axis=0)
        return records

    def _locate(self, index: int) -> tuple[RecordPart, int]:
        """Return the part an example is in, and its record number there."""
        absolute = int(self._absolute(np.array([index]))[0])
        part = int(np.searchsorted(self._starts, absolute, side="right")) - 1
        return self._parts[part], absolute - int(self._starts[part])

    def _check(self, labels: np.ndarray, indices: np.ndarray | None) -> None:
        """Raise `DataError` if one of the labels of some examples (all if None) has no class."""
        if not len(labels) or labels.max() < len(self.class_names):
            return
        row = int(np.argmax(labels >= len(self.class_names)))
        part, record = self._locate(row if indices is None else int(indices[row]))
        offset = record * self._layout.record_bytes + self._layout.label_byte
        raise DataError(
            f"{part.where}: record {record} (byte offset {offset:,}) has label {labels[row]}, "
            f"expected 0 to {len(self.class_names) - 1}.\n"
            "The file is damaged or has another format: check it with `thumbnet data verify`, or fetch it again."
        )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The parts of a data set, by what they may be used for."""

    train: ImageDataset
    """Examples to train on."""
    validation: ImageDataset | None
    """Examples carved from the training images to choose by, if any."""
    test: ImageDataset | None
    """Examples for the final evaluation only."""
    fingerprint: str = ""
    """Tells these examples from all others where files may change: in data sets of one's own; else empty."""
    config: DataConfig | None = None
    """What was asked for, a path in it absolute; None for data made by hand."""
    data_dir: Path | None = None
    """The cache that was named for it, if one was."""


def open_records(name: str, class_names: Sequence[str], layout: RecordFormat, paths: Sequence[Path]) -> ImageDataset:
    """Return the data set of one or several record files, in order.

    Raises:
        DataError: a file is missing, empty, unreadable, or not a whole number of records.
    """
    return ImageDataset(name, class_names, layout, [map_records(path, layout) for path in paths])


def split_validation(dataset: ImageDataset, count: int, *, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """Carve `count` examples out of a data set, each class in proportion, the same ones for the same seed.

    Returns:
        What is left, and what was carved out; both in the order of the data set.

    Raises:
        UsageError: nothing would be left.
    """
    if not 0 < count < len(dataset):
        raise UsageError(
            f"validation is {count:,}: {dataset.name} has {len(dataset):,} training images, "
            f"so it must be from 1 to {len(dataset) - 1:,}"
        )
    labels = dataset.labels
    sizes = np.bincount(labels, minlength=len(dataset.class_names))
    chosen = np.zeros(len(labels), np.bool_)
    generator = np.random.Generator(np.random.Philox(key=seed))
    for label, quota in enumerate(in_proportion(sizes, count)):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return dataset.take(np.flatnonzero(~chosen)), dataset.take(np.flatnonzero(chosen))


def in_proportion(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return `count` examples spread over classes in proportion to their sizes, int64 [classes]."""
    shares = sizes * count / max(sizes.sum(), 1)
    quotas: np.ndarray = np.floor(shares).astype(np.int64)
    # What rounding down has left over goes to the largest remainders, the first class first where they are equal.
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    return quotas
