from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.data.dataset import ImageDataset, open_records, split_validation
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.errors import DataError, UsageError

LAYOUT = RecordFormat(image_shape=(4, 4, 3))


def in_memory(labels: list[int], classes: int) -> ImageDataset:
    images = np.arange(len(labels) * 48, dtype=np.uint64).astype(np.uint8).reshape(-1, 4, 4, 3)
    records = LAYOUT.pack(images, np.array(labels))
    part = RecordPart(name="memory", where="memory", records=records)
    return ImageDataset("memory", [str(label) for label in range(classes)], LAYOUT, [part])


@pytest.fixture
def paths(tiny, tmp_path: Path) -> list[Path]:
    folder = tiny.put_files(tmp_path / "tiny-bin")
    return [folder / "one.bin", folder / "two.bin"]


@pytest.fixture
def dataset(tiny, paths: list[Path]) -> ImageDataset:
    return open_records("tiny", tiny.dataset.class_names, tiny.dataset.layout, paths)


@pytest.fixture
def everything(tiny) -> tuple[np.ndarray, np.ndarray]:
    files = ("one.bin", "two.bin")
    return np.concatenate([tiny.images[f] for f in files]), np.concatenate([tiny.labels[f] for f in files])


def test_a_data_set_is_all_its_files_in_order(dataset: ImageDataset, everything: tuple[np.ndarray, np.ndarray]):
    images, labels = dataset.gather(np.arange(40))
    assert len(dataset) == 40
    assert dataset.image_shape == (4, 4, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.array_equal(images, everything[0])
    assert np.array_equal(labels, everything[1])
    assert np.array_equal(dataset.labels, everything[1])


def test_where_each_file_begins(dataset: ImageDataset):
    assert dataset.files() == {0: "one.bin", 20: "two.bin"}
    assert dataset.take(np.array([3, 19, 25, 30])).files() == {0: "one.bin", 2: "two.bin"}
    assert dataset.take(np.array([25, 30])).files() == {0: "two.bin"}
    assert dataset.take(np.zeros(0, np.int64)).files() == {}


def test_examples_come_in_any_order_and_more_than_once(
    dataset: ImageDataset, everything: tuple[np.ndarray, np.ndarray]
):
    indices = np.random.default_rng(0).integers(0, 40, 100)
    images, labels = dataset.gather(indices)
    assert np.array_equal(images, everything[0][indices])
    assert np.array_equal(labels, everything[1][indices])


def test_gathered_pictures_are_copies_that_may_be_changed(dataset: ImageDataset):
    images, _ = dataset.gather(np.array([3]))
    images[:] = 0
    assert dataset.gather(np.array([3]))[0].any()


def test_a_key_is_file_and_record(dataset: ImageDataset):
    assert [dataset.key(index) for index in (0, 19, 20, 39)] == ["one.bin:0", "one.bin:19", "two.bin:0", "two.bin:19"]


def test_a_subset_of_a_subset_keeps_pictures_labels_and_keys(
    dataset: ImageDataset, everything: tuple[np.ndarray, np.ndarray]
):
    subset = dataset.take(np.array([39, 5, 20, 6])).take(np.array([2, 0]))
    images, labels = subset.gather(np.array([0, 1]))
    assert len(subset) == 2
    assert np.array_equal(images, everything[0][[20, 39]])
    assert np.array_equal(labels, everything[1][[20, 39]])
    assert np.array_equal(subset.labels, everything[1][[20, 39]])
    assert [subset.key(0), subset.key(1)] == ["two.bin:0", "two.bin:19"]


@pytest.mark.parametrize("index", [-1, 40])
def test_an_index_out_of_range_is_an_error_not_another_picture(dataset: ImageDataset, index: int):
    for refused in (dataset.gather, dataset.take):
        with pytest.raises(IndexError, match="of a set of 40"):
            refused(np.array([0, index]))
    with pytest.raises(IndexError):
        dataset.key(index)


def test_nothing_can_be_gathered(dataset: ImageDataset):
    images, labels = dataset.gather(np.array([], np.int64))
    assert images.shape == (0, 4, 4, 3)
    assert labels.shape == (0,)


def test_released_pages_come_back(dataset: ImageDataset):
    before, _ = dataset.gather(np.arange(40))
    dataset.release()
    assert np.array_equal(dataset.gather(np.arange(40))[0], before)


def test_a_label_out_of_range_is_named_by_file_record_and_offset(tiny, paths: list[Path]):
    data = bytearray(paths[1].read_bytes())
    data[7 * 49] = 10
    paths[1].write_bytes(data)
    dataset = open_records("tiny", tiny.dataset.class_names, tiny.dataset.layout, paths)
    expected = r"two\.bin: record 7 \(byte offset 343\) has label 10, expected 0 to 3"
    with pytest.raises(DataError, match=expected):
        dataset.gather(np.array([1, 27]))
    with pytest.raises(DataError, match=expected):
        _ = dataset.labels
    with pytest.raises(DataError, match=expected):
        dataset.take(np.array([27, 1])).gather(np.array([1, 0]))
    dataset.gather(np.array([1, 26, 28]))  # the others can be used


def test_a_missing_file_is_named(tiny, paths: list[Path]):
    paths[1].unlink()
    with pytest.raises(DataError, match=r"two\.bin"):
        open_records("tiny", tiny.dataset.class_names, tiny.dataset.layout, paths)


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_a_validation_set_is_disjoint_complete_stratified_and_repeatable(labels: list[int], share: float, seed: int):
    dataset = in_memory(labels, 5)
    count = 1 + int(share * (len(labels) - 2))
    train, validation = split_validation(dataset, count, seed=seed)
    keys = [[part.key(index) for index in range(len(part))] for part in (train, validation)]
    assert len(validation) == count
    assert sorted(keys[0] + keys[1]) == sorted(dataset.key(index) for index in range(len(dataset)))
    for label in range(5):
        exact = labels.count(label) * count / len(labels)
        assert abs(int((validation.labels == label).sum()) - exact) < 1
    again = split_validation(dataset, count, seed=seed)[1]
    assert [again.key(index) for index in range(count)] == keys[1]


def test_a_balanced_set_gives_a_balanced_validation_set_in_file_order():
    dataset = in_memory([label for _ in range(50) for label in range(4)], 4)
    train, validation = split_validation(dataset, 40)
    assert np.bincount(validation.labels).tolist() == [10] * 4
    for part in (train, validation):
        records = [int(part.key(index).split(":")[1]) for index in range(len(part))]
        assert records == sorted(records)


def test_another_seed_chooses_others():
    dataset = in_memory([0, 1] * 50, 2)
    chosen = {tuple(split_validation(dataset, 20, seed=seed)[1].key(i) for i in range(20)) for seed in range(5)}
    assert len(chosen) == 5


@pytest.mark.parametrize("count", [-1, 0, 4, 5])
def test_an_impossible_validation_set_is_refused(count: int):
    with pytest.raises(UsageError, match="it must be from 1 to 3"):
        split_validation(in_memory([0, 1, 0, 1], 2), count)
