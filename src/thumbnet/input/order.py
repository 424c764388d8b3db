"""Which examples come when: a pure function of (seed, epoch) and the size of the shuffling pool."""

from __future__ import annotations

import numpy as np

from thumbnet.input.philox import Stream, integers, words


def epoch_order(count: int, *, seed: int, epoch: int, pool: int) -> np.ndarray:
    """Return the order of the examples in one epoch, each exactly once, int64 [count].

    This is the order a shuffling pool gives: the pool is filled with the first `pool` records; each draw takes one of
    them uniformly at random, and the next record of the file takes its place, as long as there is one. So the example
    at position i is always one of the first `pool + i` records.

    Args:
        count: examples of the data set.
        seed: seed of the run, 0 to 2**63 - 1.
        epoch: epoch, from 0.
        pool: records in the pool; 0 and 1 keep the order of the file, `count` or more give a full permutation.
    """
    if pool <= 1:
        return np.arange(count, dtype=np.int64)
    if pool >= count:
        return _permutation(count, seed, epoch)

    # Draw i empties slot slots[i], which record pool + i then fills. So what draw i finds there is the record put in by
    # the draw before i of the same slot, or the slot's first record. A stable sort by slot brings those draws together.
    draws = count - pool
    slots = integers(draws, pool, seed=seed, epoch=epoch, stream=Stream.ORDER)
    by_slot = np.argsort(slots.astype(np.min_scalar_type(pool - 1)), kind="stable")
    sorted_slots = slots[by_slot]
    same_as_before = np.empty(draws, bool)
    same_as_before[0] = False
    np.equal(sorted_slots[1:], sorted_slots[:-1], out=same_as_before[1:])

    found = sorted_slots.astype(np.int64)
    again = np.flatnonzero(same_as_before)
    found[again] = pool + by_slot[again - 1]
    order = np.empty(count, np.int64)
    order[by_slot] = found

    # The file has ended: what is left in the slots comes out in a random order.
    left = np.arange(pool, dtype=np.int64)
    left[slots] = np.arange(pool, count, dtype=np.int64)  # of several records in one slot the last one stays
    order[draws:] = left[_permutation(pool, seed, epoch)]
    return order


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a random permutation, int64 [count]."""
    return np.argsort(words(count, seed=seed, epoch=epoch, stream=Stream.ORDER_TAIL), kind="stable")
