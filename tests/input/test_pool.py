from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.config import DistortConfig, InputConfig
from thumbnet.data.dataset import ImageDataset, open_records
from thumbnet.data.records import RecordFormat
from thumbnet.errors import DataError
from thumbnet.input import pipeline, pool
from thumbnet.input.order import epoch_order
from thumbnet.input.pipeline import Batch, TrainingInput
from thumbnet.input.pool import PoolReader

LAYOUT = RecordFormat(image_shape=(4, 5, 3))
CLASSES = tuple("abcdefghij")


def write_records(folder: Path, counts: list[int]) -> ImageDataset:
    """Write files of random records and map them."""
    rng = np.random.default_rng(0)
    paths = []
    for number, count in enumerate(counts):
        images_NHWC = rng.integers(0, 256, (count, *LAYOUT.image_shape), dtype=np.uint8)
        records = LAYOUT.pack(images_NHWC, rng.integers(0, 10, count))
        paths.append(folder / f"part{number}.bin")
        paths[-1].write_bytes(records.tobytes())
    return open_records("pictures", CLASSES, LAYOUT, paths)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return write_records(tmp_path_factory.mktemp("records"), [17, 1, 42])


@settings(deadline=None)
@given(
    pool_size=st.integers(1, 60),
    start=st.integers(0, 200),
    steps=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    fill=st.integers(1, 30),
)
def test_reads_what_the_order_says(
    dataset: ImageDataset, pool_size: int, start: int, steps: list[int], fill: int
) -> None:
    """Any pool, start and number of examples at a time, and whether the pool is full by then or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_FILL_BYTES", fill * 60)
        reader = PoolReader(dataset, pool=pool_size, seed=5, position=start)
        epochs = range((start + sum(steps)) // 60 + 1)
        expected = np.concatenate([e * 60 + epoch_order(60, seed=5, epoch=e, pool=pool_size) for e in epochs])[start:]
        for step in steps:
            numbers, images_NHWC, labels = reader.take(step)
            np.testing.assert_array_equal(numbers, expected[:step])
            expected_NHWC, expected_labels = dataset.gather(numbers % 60)
            np.testing.assert_array_equal(images_NHWC, expected_NHWC)
            np.testing.assert_array_equal(labels, expected_labels)
            expected = expected[step:]


def batches_of(dataset: ImageDataset, *, start_step: int, pool_mib: int) -> list[Batch]:
    config = InputConfig(batch_size=16, pool=0.3, pool_mib=pool_mib)
    distort = DistortConfig(crop=3, contrast=(0.2, 1.8))
    with TrainingInput(dataset, distort, config, seed=1, start_step=start_step) as batches:
        return [next(batches) for _ in range(12)]


@pytest.mark.parametrize("start_step", [0, 2, 5])
def test_batches_from_the_pool_are_those_from_memory(
    dataset: ImageDataset, start_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(dataset, start_step=start_step, pool_mib=512)
    # As if one MiB had room for 18 pictures, which is what a pool of 0.3 wants of the 60.
    monkeypatch.setattr(pipeline, "_budget_examples", lambda dataset, config: 18 * config.pool_mib)
    opened = []
    monkeypatch.setattr(pipeline, "PoolReader", lambda *args, **more: opened.append(1) or PoolReader(*args, **more))
    found = batches_of(dataset, start_step=start_step, pool_mib=1)
    assert opened
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that fills with the examples read, in order."""
    indices_read: list[int] = []
    gather = ImageDataset.gather

    def watched(self: ImageDataset, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices_read.extend(indices.tolist())
        return gather(self, indices)

    monkeypatch.setattr(ImageDataset, "gather", watched)
    return indices_read


def test_files_are_read_from_front_to_back_once_an_epoch(dataset: ImageDataset, read: list[int]) -> None:
    reader = PoolReader(dataset, pool=20, seed=5, position=0)
    for _ in range(18):
        reader.take(10)
    assert read == [*range(60), *range(60), *range(60), *range(20)]


def test_nothing_is_read_twice_while_the_pool_fills(
    dataset: ImageDataset, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_FILL_BYTES", 4 * 60)
    reader = PoolReader(dataset, pool=40, seed=5, position=0)
    reader.take(4)
    assert len(read) <= 12  # training starts long before the pool is full
    for _ in range(14):
        reader.take(4)
    assert np.bincount(read, minlength=60).tolist() == [2] * 40 + [1] * 20  # the second time is for the next epoch


def test_pages_are_given_back(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_RELEASE_BYTES", 25 * 60)
    released: list[int] = []
    monkeypatch.setattr(ImageDataset, "release", lambda self: released.append(1))
    reader = PoolReader(dataset, pool=20, seed=5, position=0)
    reader.take(10)
    already = len(released)
    for _ in range(10):
        reader.take(10)
    assert len(released) - already in (3, 4)  # 100 pictures read, given back after every third batch of 10


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    dataset = write_records(tmp_path, [50])
    path = tmp_path / "part0.bin"
    content = bytearray(path.read_bytes())
    content[33 * 61] = 200
    path.write_bytes(content)
    reader = PoolReader(dataset, pool=10, seed=0, position=0)

    def read_all() -> Any:
        for _ in range(5):
            reader.take(10)

    with pytest.raises(DataError, match=r"part0\.bin.*record 33 .*label 200"):
        read_all()
