"""Random numbers as a pure function of (seed, epoch, stream, position): NumPy's counter-based Philox.

Only the raw 64-bit words are used, because NumPy promises that they never change, which it does not promise for the
distributions of `numpy.random.Generator`: a run can be resumed under another NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np

_BLOCK = 1 << 16
"""Numbers made at a time: intermediate arrays stay in the processor's cache, whatever the size of the data set."""


class Stream(IntEnum):
    """What the numbers are for. Every use has a stream of its own, so that switching one on never changes another."""

    ORDER = 0
    ORDER_TAIL = 1
    TOP = 2
    LEFT = 3
    FLIP = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    CUTOUT_TOP = 7
    CUTOUT_LEFT = 8
    BLOCKS = 9
    NETWORK = 10


class Uniform:
    """Numbers uniform in [0, 1), one after the other, from the 53 highest bits of each word."""

    def __init__(self, *, seed: int, epoch: int, stream: Stream) -> None:
        self._philox = _philox(seed, epoch, stream)

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` numbers, float64 [count]."""
        bits = np.asarray(self._philox.random_raw(count), np.uint64) >> np.uint64(11)
        numbers: np.ndarray = bits * 2.0**-53
        return numbers

    def take_integers(self, count: int, limit: int) -> np.ndarray:
        """Return the next `count` numbers as integers uniform in [0, limit), int64 [count]; limit at most 2**53."""
        # Stays below `limit`: the largest number, 1 - 2**-53, times an integer never rounds up to that integer.
        return (self.take(count) * limit).astype(np.int64)


def words(count: int, *, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Return `count` random 64-bit words, uint64 [count]."""
    return np.asarray(_philox(seed, epoch, stream).random_raw(count), np.uint64)


def integers(count: int, limit: int, *, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Return `count` integers uniform in [0, limit), [count] of the smallest unsigned type that holds them."""
    numbers = Uniform(seed=seed, epoch=epoch, stream=stream)
    out = np.empty(count, np.min_scalar_type(limit - 1))
    for block in _blocks(count):
        out[block] = numbers.take_integers(block.stop - block.start, limit)
    return out


def between(count: int, low: float, high: float, *, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Return `count` numbers uniform in [low, high), float32 [count]."""
    numbers = Uniform(seed=seed, epoch=epoch, stream=stream)
    out = np.empty(count, np.float32)
    for block in _blocks(count):
        out[block] = low + (high - low) * numbers.take(block.stop - block.start)
    return out


def _philox(seed: int, epoch: int, stream: Stream) -> np.random.Philox:
    # The stream sits in the counter's highest word: it would take 2**192 blocks of one stream to reach the next.
    return np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
