"""Random numbers as a pure function of (seed, epoch, stream, position): NumPy's counter-based Philox.

Only the raw 64-bit words are used, because NumPy promises that they never change, which it does not promise for the
distributions of `numpy.random.Generator`: a run can be resumed under another NumPy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


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


def words(count: int, *, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Return `count` random 64-bit words, uint64 [count]."""
    # The stream sits in the counter's highest word: it would take 2**192 draws of one stream to reach the next.
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))
    return np.asarray(philox.random_raw(count), np.uint64)


def uniform(count: int, *, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Return `count` numbers uniform in [0, 1), float64 [count], of the 53 highest bits of each word."""
    bits = words(count, seed=seed, epoch=epoch, stream=stream)
    bits >>= np.uint64(11)
    numbers = bits.astype(np.float64)
    numbers *= 2.0**-53
    return numbers


def integers(count: int, limit: int, *, seed: int, epoch: int, stream: Stream) -> np.ndarray:
    """Return `count` integers uniform in [0, limit), int32 [count]; `limit` is at most 2**31."""
    numbers = uniform(count, seed=seed, epoch=epoch, stream=stream)
    numbers *= limit  # stays below `limit`: 1 - 2**-53 times an integer below 2**31 never rounds up to it
    return numbers.astype(np.int32)
