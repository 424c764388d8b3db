import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.input import order
from thumbnet.input.order import BlockOrder, PoolOrder, drawn_in, epoch_order
from thumbnet.input.philox import Stream, Uniform, words


def pool_by_hand(count: int, pool: int, seed: int, epoch: int) -> list[int]:
    """Run a shuffling pool record by record, with the same random numbers."""
    records = iter(range(count))
    slots = [next(records) for _ in range(pool)]
    numbers = Uniform(seed=seed, epoch=epoch, stream=Stream.ORDER)
    order = []
    for record in records:
        slot = int(numbers.take(1)[0] * pool)
        order.append(slots[slot])
        slots[slot] = record
    tail = np.argsort(words(pool, seed=seed, epoch=epoch, stream=Stream.ORDER_TAIL))
    return order + [slots[slot] for slot in tail]


@given(count=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_order_is_that_of_a_pool(count: int, share: float, seed: int, epoch: int) -> None:
    pool = max(1, round(share * count))
    assert epoch_order(count, seed=seed, epoch=epoch, pool=pool).tolist() == pool_by_hand(count, pool, seed, epoch)


@given(count=st.integers(1, 500), pool=st.integers(0, 600), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5))
def test_every_example_once(count: int, pool: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed=seed, epoch=epoch, pool=pool)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert (order < max(pool, 1) + np.arange(count)).all()  # nothing comes before it can have entered the pool


@pytest.mark.parametrize("pool", [0, 1])
def test_no_pool_keeps_the_order_of_the_file(pool: int) -> None:
    assert epoch_order(100, seed=5, epoch=3, pool=pool).tolist() == list(range(100))


def test_orders_of_seeds_and_epochs_differ() -> None:
    orders = {
        tuple(epoch_order(50, seed=seed, epoch=epoch, pool=pool))
        for seed in (0, 1)
        for epoch in (0, 1)
        for pool in (20, 50)
    }
    assert len(orders) == 8


def test_a_full_pool_shuffles_evenly() -> None:
    """Every example comes at every position equally often."""
    orders = np.stack([epoch_order(10, seed=0, epoch=epoch, pool=10) for epoch in range(5_000)])
    counts = np.stack([np.bincount(orders[:, position], minlength=10) for position in range(10)])
    assert abs(counts - 500).max() < 5 * np.sqrt(500 * 0.9)


@given(
    count=st.integers(1, 60),
    share=st.floats(0, 1),
    start=st.integers(0, 200),
    steps=st.lists(st.integers(1, 70), min_size=1, max_size=5),
)
def test_the_stream_is_one_order_after_the_other(count: int, share: float, start: int, steps: list[int]) -> None:
    """However many draws are made at a time, and wherever they start; and a slot holds what it is said to hold."""
    pool = max(1, round(share * count))
    stream = PoolOrder(count, pool=pool, seed=7, position=start)
    held = stream.contents.copy()
    drawn = []
    for step in steps:
        numbers, slots = stream.take(step)
        for number, slot in zip(numbers, slots, strict=True):
            assert held[slot] == number
            held[slot] = start + len(drawn) + pool
            drawn.append(number)
        np.testing.assert_array_equal(held, stream.contents)
        assert stream.position == start + len(drawn)
    end = start + len(drawn)
    epochs = range(start // count, end // count + 1)
    whole = np.concatenate([epoch * count + epoch_order(count, seed=7, epoch=epoch, pool=pool) for epoch in epochs])
    first = start // count * count
    assert drawn == whole[start - first : end - first].tolist()


@pytest.mark.parametrize("pool", [0, 11])
def test_impossible_pools(pool: int) -> None:
    with pytest.raises(ValueError, match=rf"pool \(={pool}\) must be at least 1 and at most count \(=10\)"):
        PoolOrder(10, pool=pool, seed=0, position=0)


@given(
    count=st.integers(1, 200),
    fraction=st.floats(0, 1),
    epoch=st.integers(0, 5),
    share=st.lists(st.booleans(), min_size=1, max_size=9),
    at_a_time=st.integers(1, 50),
)
def test_it_is_known_ahead_which_records_a_share_of_the_positions_draws(
    count: int, fraction: float, epoch: int, share: list[bool], at_a_time: int
) -> None:
    pool = max(1, round(fraction * count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_AT_A_TIME", at_a_time)
        drawn = drawn_in(epoch, share=np.array(share), count=count, pool=pool, seed=3)
    whole = epoch_order(count, seed=3, epoch=epoch, pool=pool).tolist()
    expected = {record for i, record in enumerate(whole) if share[(epoch * count + i) % len(share)]}
    assert drawn.dtype == bool
    assert set(np.flatnonzero(drawn).tolist()) == expected


@given(count=st.integers(1, 300), block=st.integers(1, 400), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5))
def test_blocks_hold_neighbours_and_each_record_comes_once(count: int, block: int, seed: int, epoch: int) -> None:
    records = BlockOrder(epoch, count=count, block=block, seed=seed).records(np.arange(count))
    assert sorted(records.tolist()) == list(range(count))
    if block >= count:
        assert records.tolist() == list(range(count))
    for start in range(0, count, block):
        part = records[start : start + block]
        assert ((part[0] + np.arange(len(part))) % count == part).all()


def test_blocks_come_in_any_order_and_begin_anywhere() -> None:
    orders = [BlockOrder(epoch, count=10, block=3, seed=0).records(np.arange(10)) for epoch in range(3_000)]
    for place in (0, 5, 9):
        counts = np.bincount([order[place] for order in orders], minlength=10)
        assert abs(counts - 300).max() < 5 * np.sqrt(300 * 0.9)
    assert len({tuple(order.tolist()) for order in orders}) == 10 * 6  # every shift with every order of 3 blocks


def test_a_start_in_mid_epoch_takes_no_memory_for_the_draws_before_it() -> None:
    tracemalloc.start()
    PoolOrder(3_000_000, pool=1_000, seed=0, position=2_999_000)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 8 * 2**20
