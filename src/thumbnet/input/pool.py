"""A shuffling pool over record files larger than memory: read in long stretches, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from thumbnet.input.order import BlockOrder, PoolOrder, drawn_in

if TYPE_CHECKING:
    from thumbnet.data.dataset import ImageDataset

_FILL_BYTES = 8 * 2**20
"""Pictures read into the empty pool with each batch: training starts at once, and the pool is full a little later."""
_RELEASE_BYTES = 16 * 2**20
"""Pictures passed over in the files before their mapped pages are given back."""
_EVERY = np.ones(1, bool)


class PoolReader:
    """Examples in the order of `PoolOrder`, of which only those in the pool are kept, as copies.

    Every draw lets in the next record, so they are read from front to back (of the files, or of blocks of them), epoch
    after epoch. At the start, and after a resume, pictures that are drawn before the pool is filled are read from where
    they are.

    Each of several replicas follows the same order, and knows ahead which records it will draw itself: it reads and
    keeps no others.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        pool: int,
        seed: int,
        position: int,
        block: int | None = None,
        share: np.ndarray = _EVERY,
    ) -> None:
        """Start at a position; reads nothing yet.

        Args:
            dataset: examples, mapped from files.
            pool: pictures in the pools of all replicas together, 1 to the number of examples.
            seed: seed of the order.
            position: examples already taken, through all epochs and by all replicas.
            block: neighbours that enter one after the other, in blocks that are shuffled; all if None.
            share: which positions are this replica's, bool [period]: position p if share[p % period].
        """
        count = len(dataset)
        self._dataset, self._share = dataset, share
        self._order = PoolOrder(count, pool=pool, seed=seed, position=position)
        self._first_in = position + pool
        # The pool of an epoch takes in records of the next: two epochs are in use.
        self._drawn_in = lru_cache(maxsize=2)(partial(drawn_in, share=share, count=count, pool=pool, seed=seed))
        self._blocks_in = lru_cache(maxsize=2)(partial(BlockOrder, count=count, block=block or count, seed=seed))

        height, width, channels = dataset.image_shape
        # Memory is given out when it is first written to, and the places that came free last are used again first: so
        # the pool of one of N replicas takes about one N-th of this.
        self._images_NCHW = np.empty((pool, channels, height, width), np.uint8)
        self._labels = np.empty(pool, np.int64)
        self._place = np.full(pool, -1)  # of the picture last kept for each slot
        self._places = np.arange(pool)  # those from `_kept` on are free
        self._kept = 0
        to_fill = np.argsort(self._order.contents)  # in the order of reading
        self._to_fill = to_fill[self._is_mine(self._order.contents[to_fill])]
        self._passed_bytes = 0

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the next examples: those of this replica's share of the next `count` positions.

        Returns:
            The numbers of the examples through all epochs int64 [n], their pictures uint8 [n, H, W, C] (a view of
            channel-major memory), and their labels int64 [n].

        Raises:
            DataError: a record is damaged.
        """
        self._fill()
        positions = self._order.position + np.arange(count)
        incoming = positions + len(self._place)
        entrances, into = self._order.take(count)
        staying = self._is_mine(incoming) & (self._order.contents[into] == incoming)
        chosen = self._share[positions % len(self._share)]
        entrances, slots = entrances[chosen], into[chosen]

        places = self._place[slots]
        images_NCHW, labels = self._images_NCHW[places], self._labels[places]
        kept = (places >= 0) & (entrances < incoming[0])
        if not kept.all():  # drawn before the pool was filled, or just as they came in
            images_NCHW[~kept], labels[~kept] = self._read(entrances[~kept])
        self._drop(slots[kept])
        self._keep(into[staying], *self._read(incoming[staying]))
        self._release(count)
        return self._numbers(entrances), images_NCHW.transpose(0, 2, 3, 1), labels

    def _fill(self) -> None:
        """Read some more of the pictures that the pool starts with."""
        if not len(self._to_fill):
            return
        some = max(1, _FILL_BYTES // math.prod(self._dataset.image_shape))
        slots, self._to_fill = self._to_fill[:some], self._to_fill[some:]
        slots = slots[self._order.contents[slots] < self._first_in]  # the others have been drawn
        self._keep(slots, *self._read(self._order.contents[slots]))
        self._dataset.release()

    def _keep(self, slots: np.ndarray, images_NCHW: np.ndarray, labels: np.ndarray) -> None:
        """Keep the pictures of slots."""
        places = self._places[self._kept : self._kept + len(slots)]
        self._kept += len(slots)
        self._place[slots], self._images_NCHW[places], self._labels[places] = places, images_NCHW, labels

    def _drop(self, slots: np.ndarray) -> None:
        """Give the places of slots free."""
        self._kept -= len(slots)
        self._places[self._kept : self._kept + len(slots)] = self._place[slots]

    def _read(self, entrances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read examples by their entrance: pictures uint8 [b, C, H, W] and labels int64 [b]."""
        images_NHWC, labels = self._dataset.gather(self._numbers(entrances) % len(self._dataset))
        return images_NHWC.transpose(0, 3, 1, 2), labels

    def _release(self, count: int) -> None:
        """Give mapped pages back, now and then."""
        self._passed_bytes += count * math.prod(self._dataset.image_shape)
        # While the pool fills, pictures are also read here and there, and the kernel maps their neighbours with them.
        if self._passed_bytes >= _RELEASE_BYTES or len(self._to_fill):
            self._dataset.release()
            self._passed_bytes = 0

    def _is_mine(self, entrances: np.ndarray) -> np.ndarray:
        """Return which records will be drawn for this replica's share, bool [n], by their ascending entrance."""
        return self._by_epoch(entrances, lambda epoch, offsets: self._drawn_in(epoch)[offsets])

    def _numbers(self, entrances: np.ndarray) -> np.ndarray:
        """Return the numbers, through all epochs, of the examples that enter when."""
        count = len(self._dataset)
        return self._by_epoch(entrances, lambda epoch, offsets: epoch * count + self._blocks_in(epoch).records(offsets))

    def _by_epoch(self, entrances: np.ndarray, of: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
        """Apply a function of an epoch and offsets in it to entrances through all epochs, earlier epochs first."""
        epochs, offsets = np.divmod(entrances, len(self._dataset))
        if not len(epochs) or epochs[0] == epochs[-1]:
            return of(int(epochs.max(initial=0)), offsets)
        return np.concatenate([of(epoch, offsets[epochs == epoch]) for epoch in range(epochs[0], epochs[-1] + 1)])
