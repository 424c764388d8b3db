"""Which examples come when: a pure function of (seed, epoch) and the size of the shuffling pool.

A shuffling pool is filled with the first `pool` records of the file; each draw takes one of them uniformly at random,
and the next record of the file takes its place, as long as there is one. So the example at position i is always one of
the first `pool + i` records: the file is read from front to back, and only the pool has to be in memory.
"""

from __future__ import annotations

import numpy as np

from thumbnet.input.philox import Stream, Uniform, words

_AT_A_TIME = 1 << 16
"""Draws made at once where many are made: what they need stays in the processor's cache, and memory bounded."""


def epoch_order(count: int, *, seed: int, epoch: int, pool: int) -> np.ndarray:
    """Return the order of the examples in one epoch, each exactly once, int64 [count].

    Args:
        count: examples of the data set.
        seed: seed of the run, 0 to 2**63 - 1.
        epoch: epoch, from 0.
        pool: records in the shuffling pool; 0 and 1 keep the order of the file, `count` or more shuffle all of it.
    """
    numbers, _ = PoolOrder(count, pool=min(max(pool, 1), count), seed=seed, position=epoch * count).take(count)
    return numbers - epoch * count


class PoolOrder:
    """The draws of a shuffling pool over epoch after epoch, in memory that grows with the pool only.

    Records are numbered through all epochs: record r of epoch e has number e * count + r. While the pool of one epoch
    runs empty, the records of the next one take the places that come free, but are drawn only after it. So every draw
    lets exactly one record in: the draw at position p (counted through all epochs too) frees a slot for record number
    p + pool.
    """

    def __init__(self, count: int, *, pool: int, seed: int, position: int) -> None:
        """Start at a position.

        Args:
            count: examples of the data set.
            pool: slots of the pool, 1 to `count`.
            seed: seed of the run, 0 to 2**63 - 1.
            position: draws already made, through all epochs.
        """
        if not 1 <= pool <= count:
            raise ValueError(f"pool (={pool}) must be at least 1 and at most count (={count})")
        self._count, self._pool, self._seed = count, pool, seed
        self.position = position // count * count
        """Draws made so far, through all epochs."""
        self.contents = self.position + np.arange(pool, dtype=np.int64)
        """Number of the record in each slot, int64 [pool]."""
        # The draws of an epoch speak of slots in the order in which its first records came in, which is where the
        # epoch before it left room.
        self._slot_of = np.arange(pool, dtype=np.int64)
        self._begin_epoch()
        while self.position < position:
            self.take(min(position - self.position, _AT_A_TIME))

    def take(self, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Make the next draws.

        Returns:
            The numbers of the records drawn and the slots they were drawn from, both int64 [draws].
        """
        parts = []
        while draws:
            offset = self.position % self._count
            refilled = self._count - self._pool  # draws of the epoch that let in records of the same epoch
            if offset < refilled:
                step = min(draws, refilled - offset)
                slots = self._slot_of[self._uniform.take_integers(step, self._pool)]
            else:
                step = min(draws, self._count - offset)
                slots = self._tail[offset - refilled : offset - refilled + step]
            parts.append((self._draw(slots), slots))
            draws -= step
            if offset + step == self._count:
                self._slot_of = self._tail
                self._begin_epoch()
        numbers, slots = zip(*parts, strict=True)
        return np.concatenate(numbers), np.concatenate(slots)

    def _begin_epoch(self) -> None:
        epoch = self.position // self._count
        self._uniform = Uniform(seed=self._seed, epoch=epoch, stream=Stream.ORDER)
        # When the file has ended, drawing from what is left in the pool takes the slots in a random order.
        self._tail = self._slot_of[_permutation(self._pool, self._seed, epoch)]

    def _draw(self, slots: np.ndarray) -> np.ndarray:
        """Draw from these slots, one after the other, and let the next records in; returns the record numbers."""
        incoming = self.position + self._pool + np.arange(len(slots), dtype=np.int64)
        # A slot drawn more than once gives, from the second time on, the record that the draw before it let in.
        # A stable sort by slot brings those draws together.
        by_slot = np.argsort(slots.astype(np.min_scalar_type(self._pool - 1)), kind="stable")
        again = np.flatnonzero(np.diff(slots[by_slot]) == 0) + 1
        numbers: np.ndarray = self.contents[slots]
        numbers[by_slot[again]] = incoming[by_slot[again - 1]]
        self.contents[slots] = incoming  # of several records for one slot the last one stays
        self.position += len(slots)
        return numbers


def drawn_in(epoch: int, *, share: np.ndarray, count: int, pool: int, seed: int) -> np.ndarray:
    """Return which records of an epoch are drawn at some of the positions: what a replica has to read, bool [count].

    All draws of the epoch are made for that, in whole numbers: 0.1 to 0.2 us each, the more the larger the pool.

    Args:
        epoch: epoch, from 0.
        share: which positions, bool [period]: position p (through all epochs) if share[p % period].
        count: examples of the data set.
        pool: slots of the pool, 1 to `count`.
        seed: seed of the run, 0 to 2**63 - 1.
    """
    if share.all():
        return np.broadcast_to(np.bool_(True), count)
    first = epoch * count
    order = PoolOrder(count, pool=pool, seed=seed, position=first)
    drawn = np.zeros(count, bool)
    for start in range(first, first + count, _AT_A_TIME):
        positions = np.arange(start, min(start + _AT_A_TIME, first + count))
        numbers, _ = order.take(len(positions))
        drawn[numbers[share[positions % len(share)]] - first] = True
    return drawn


class BlockOrder:
    """The order in which the records of one epoch enter a pool that is small: blocks of neighbours, shuffled.

    A pool mixes records that are near each other in the files. Where it is small against the data set, this brings
    records together that are far from each other, and still reads them in long stretches.
    """

    def __init__(self, epoch: int, *, count: int, block: int, seed: int) -> None:
        """Draw the order.

        Args:
            epoch: epoch, from 0.
            count: examples of the data set.
            block: records that stay together; `count` or more keep the order of the files.
            seed: seed of the run, 0 to 2**63 - 1.
        """
        self._count, self._block = count, block
        blocks = count // block if block < count else 0
        drawn = words(blocks + 1, seed=seed, epoch=epoch, stream=Stream.BLOCKS)
        # What does not make up a block comes last; which records these are, the shift decides.
        self._starts = np.append(np.argsort(drawn[:-1], kind="stable"), blocks) * block
        self._shift = int(drawn[-1] % np.uint64(count)) if blocks else 0

    def records(self, entrances: np.ndarray) -> np.ndarray:
        """Return which records enter at some places of the order, both int64 [n], 0 to count - 1."""
        block, within = np.divmod(entrances, self._block)
        records: np.ndarray = (self._starts[block] + within + self._shift) % self._count
        return records


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a random permutation, int64 [count]."""
    order: np.ndarray = np.argsort(words(count, seed=seed, epoch=epoch, stream=Stream.ORDER_TAIL), kind="stable")
    return order
