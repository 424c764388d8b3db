import threading
from typing import Any

import numpy as np
import pytest
import torch

from thumbnet.config import DistortConfig, InputConfig
from thumbnet.errors import DataError, UsageError
from thumbnet.input.distort import distort, draw, prepare
from thumbnet.input.order import epoch_order
from thumbnet.input.pipeline import BLOCK_EXAMPLES, Batch, TrainingInput, evaluation_batches

DISTORT = DistortConfig(crop=24, brightness=63.0, contrast=(0.2, 1.8))


def take(dataset: Any, count: int, *, start_step: int = 0, batch_size: int = 8, **options: Any) -> list[Batch]:
    config = InputConfig(batch_size=batch_size, pool=options.pop("pool", 0.4), pool_mib=options.pop("pool_mib", 512))
    with TrainingInput(dataset, DISTORT, config, seed=3, start_step=start_step, **options) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("batch_size", [1, 8, 50, 70])
def test_batches_are_the_orders_of_the_epochs_one_after_the_other(pictures: Any, batch_size: int) -> None:
    dataset = pictures(30)
    batches = take(dataset, 9, batch_size=batch_size)
    position = 0
    for batch in batches:
        assert batch.images.shape == (batch_size, 3, 24, 24)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == torch.int64
        assert batch.indices.dtype == np.int64
        for i in range(batch_size):
            epoch, offset = divmod(position, 30)
            index = epoch_order(30, seed=3, epoch=epoch, pool=12)[offset]
            assert batch.indices[i] == index
            assert batch.labels[i] == dataset.labels[index]
            images_NHWC, _ = dataset.gather(np.array([index]))
            drawn = draw(30, DISTORT, dataset.image_shape, seed=3, epoch=epoch).take(np.array([index]))
            np.testing.assert_allclose(batch.images[i], distort(images_NHWC, drawn, DISTORT)[0], atol=1e-6)
            position += 1


@pytest.mark.parametrize("pool_mib", [512, 1])
@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_the_shares_of_replicas_make_up_the_batches(pictures: Any, batch_size: int, pool_mib: int) -> None:
    # Pictures of 48x48 do not fit into a pool of 1 MiB, so that they are read in blocks.
    dataset = pictures(400, (48, 48, 3))
    options: dict[str, Any] = {"batch_size": batch_size, "pool_mib": pool_mib}
    middle = batch_size // 2
    halves = [take(dataset, 7, share=part, **options) for part in (slice(0, middle), slice(middle, None))]
    for whole, one, other in zip(take(dataset, 7, **options), *halves, strict=True):
        assert whole.indices.tolist() == [*one.indices, *other.indices]
        assert torch.equal(whole.labels, torch.cat([one.labels, other.labels]))
        assert torch.equal(whole.images, torch.cat([one.images, other.images]))


@pytest.mark.parametrize("step", [1, 3, 4, 8, 23])
def test_resumed_batches_are_identical(pictures: Any, step: int) -> None:
    dataset = pictures(30)
    whole = take(dataset, step + 6)
    assert_same(take(dataset, 6, start_step=step), whole[step:])


@pytest.mark.parametrize("prefetch", [1, 20])
def test_prefetching_changes_nothing(pictures: Any, prefetch: int) -> None:
    dataset = pictures(30)
    assert_same(take(dataset, 12, prefetch=prefetch), take(dataset, 12))


def test_the_pool_is_a_share_of_the_epoch_within_the_memory_allowed(pictures: Any) -> None:
    dataset = pictures(2000)
    for share, mib, pool in [(0.0, 512, 0), (0.4, 512, 800), (0.4003, 512, 801), (1.0, 512, 2000)]:
        (batch,) = take(dataset, 1, batch_size=2000, pool=share, pool_mib=mib)
        assert batch.indices.tolist() == epoch_order(2000, seed=3, epoch=0, pool=pool).tolist()


def test_an_error_in_the_background_reaches_the_consumer(pictures: Any) -> None:
    class Broken(pictures):
        def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if 600 in indices:
                raise DataError("record 600 is damaged")
            return super().gather(indices)

    # Each batch is as many as are prepared at once.
    with TrainingInput(Broken(800), DISTORT, InputConfig(batch_size=BLOCK_EXAMPLES, pool=0), seed=0) as batches:
        assert next(batches).indices.tolist() == list(range(BLOCK_EXAMPLES))
        next(batches)
        for _ in range(2):
            with pytest.raises(DataError, match="record 600 is damaged"):
                next(batches)


def test_close_leaves_no_thread(pictures: Any) -> None:
    before = set(threading.enumerate())
    batches = TrainingInput(pictures(40), DISTORT, InputConfig(batch_size=8), seed=0)
    next(batches)
    assert set(threading.enumerate()) != before
    batches.close()
    batches.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(StopIteration):
        next(batches)


def test_waiting_is_measured(pictures: Any) -> None:
    released = threading.Event()

    class Slow(pictures):
        def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            released.wait()
            return super().gather(indices)

    with TrainingInput(Slow(40), DISTORT, InputConfig(batch_size=8), seed=0) as batches:
        assert batches.wait_s == 0
        threading.Timer(0.05, released.set).start()
        next(batches)
        waited = batches.wait_s
        assert waited > 0.01
        next(batches)
        assert batches.wait_s >= waited


def test_what_cannot_work_is_refused_before_any_thread_starts(pictures: Any) -> None:
    before = set(threading.enumerate())
    with pytest.raises(DataError, match="pictures: there are no examples to train on"):
        TrainingInput(pictures(0), DISTORT, InputConfig(), seed=0)
    with pytest.raises(UsageError, match="crop is 48"):
        TrainingInput(pictures(5), DistortConfig(crop=48), InputConfig(), seed=0)
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("batch_size", [1, 7, 10, 30])
def test_evaluation_takes_every_example_once_in_order(pictures: Any, batch_size: int) -> None:
    dataset = pictures(20)
    batches = list(evaluation_batches(dataset, DISTORT, batch_size))
    assert [len(batch.labels) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(20))
    assert torch.cat([batch.labels for batch in batches]).tolist() == dataset.labels.tolist()
    images_NHWC, _ = dataset.gather(np.arange(20))
    np.testing.assert_allclose(torch.cat([batch.images for batch in batches]), prepare(images_NHWC, DISTORT), atol=1e-6)
