"""A shuffling pool over record files larger than memory: read from front to back, in bounded memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from thumbnet.input.order import PoolOrder

if TYPE_CHECKING:
    from thumbnet.data.dataset import ImageDataset

_FILL_BYTES = 8 * 2**20
"""Pictures read into the empty pool with each batch: training starts at once, and the pool is full a little later."""
_RELEASE_BYTES = 16 * 2**20
"""Pictures read before their mapped pages are given back."""


class PoolReader:
    """Examples in the order of `PoolOrder`, of which only those in the pool are kept, as copies.

    Every draw lets in the next record of the files, so they are read from front to back, epoch after epoch. At the
    start, and after a resume, pictures that are drawn before the pool is filled are read from where they are.
    """

    def __init__(self, dataset: ImageDataset, *, pool: int, seed: int, position: int) -> None:
        """Start at a position; reads nothing yet.

        Args:
            dataset: examples, mapped from files.
            pool: pictures in the pool, 1 to the number of examples.
            seed: seed of the order.
            position: examples already taken, through all epochs.
        """
        self._dataset = dataset
        self._order = PoolOrder(len(dataset), pool=pool, seed=seed, position=position)
        height, width, channels = dataset.image_shape
        self._images_NCHW = np.empty((pool, channels, height, width), np.uint8)
        self._labels = np.empty(pool, np.int64)
        self._filled = np.zeros(pool, bool)
        self._to_fill = np.argsort(self._order.contents)  # in the order of the files
        self._unreleased_bytes = 0

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the next examples.

        Returns:
            The numbers of the examples through all epochs int64 [count], their pictures uint8 [count, H, W, C] (a view
            of channel-major memory), and their labels int64 [count].

        Raises:
            DataError: a record is damaged.
        """
        self._fill()
        first_in = self._order.position + len(self._filled)
        numbers, slots = self._order.take(count)
        incoming_NCHW, incoming_labels = self._read(first_in + np.arange(count))
        images_NCHW, labels = self._images_NCHW[slots], self._labels[slots]

        (passing,) = np.nonzero(numbers >= first_in)  # came in with this very batch
        images_NCHW[passing] = incoming_NCHW[numbers[passing] - first_in]
        labels[passing] = incoming_labels[numbers[passing] - first_in]
        (early,) = np.nonzero((numbers < first_in) & ~self._filled[slots])
        if len(early):
            images_NCHW[early], labels[early] = self._read(numbers[early])

        # Of several pictures for one slot the last one stays, as in the order.
        self._images_NCHW[slots], self._labels[slots] = incoming_NCHW, incoming_labels
        self._filled[slots] = True
        return numbers, images_NCHW.transpose(0, 2, 3, 1), labels

    def _fill(self) -> None:
        """Read some more of the pictures that the pool starts with."""
        if not len(self._to_fill):
            return
        some = max(1, _FILL_BYTES // math.prod(self._dataset.image_shape))
        slots, self._to_fill = self._to_fill[:some], self._to_fill[some:]
        slots = slots[~self._filled[slots]]
        self._images_NCHW[slots], self._labels[slots] = self._read(self._order.contents[slots])
        self._filled[slots] = True

    def _read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read examples by number: pictures uint8 [b, C, H, W] and labels int64 [b]."""
        images_NHWC, labels = self._dataset.gather(numbers % len(self._dataset))
        self._unreleased_bytes += images_NHWC.nbytes
        # While the pool fills, pictures are also read here and there, and the kernel maps their neighbours with them.
        if self._unreleased_bytes >= _RELEASE_BYTES or len(self._to_fill):
            self._dataset.release()
            self._unreleased_bytes = 0
        return images_NHWC.transpose(0, 3, 1, 2), labels
