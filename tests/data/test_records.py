from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.data.dataset import ImageDataset
from thumbnet.data.records import RecordFormat, map_records
from thumbnet.errors import DataError

SMALL = RecordFormat(image_shape=(2, 3, 3), label_bytes=1)


def test_sizes_are_those_of_the_release():
    assert RecordFormat().record_bytes == 3073
    assert RecordFormat(label_bytes=2).record_bytes == 3074


def test_a_record_is_label_then_red_green_blue_row_by_row(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes([7, *range(18)]))
    records = map_records(path, SMALL).records
    images_NHWC = SMALL.images(records)
    assert SMALL.labels(records).tolist() == [7]
    assert SMALL.labels(records).dtype == np.int64
    assert images_NHWC.shape == (1, 2, 3, 3)
    for row in range(2):
        for column in range(3):
            red = row * 3 + column
            assert images_NHWC[0, row, column].tolist() == [red, red + 6, red + 12]


def test_of_two_label_bytes_the_second_is_the_label():
    layout = RecordFormat(image_shape=(2, 3, 3), label_bytes=2)
    records = np.array([[11, 99, *range(18)]], np.uint8)
    assert layout.labels(records).tolist() == [99]
    assert layout.images(records)[0, 0, 0].tolist() == [0, 6, 12]


def test_of_a_coarse_and_a_fine_label_either_may_count():
    records = np.array([[11, 99, *range(18)]], np.uint8)
    coarse = RecordFormat(image_shape=(2, 3, 3), label_bytes=2, coarse=True)
    assert coarse.labels(records).tolist() == [11]
    assert coarse.images(records)[0, 0, 0].tolist() == [0, 6, 12]


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
    label_bytes=st.integers(1, 2),
    count=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_packing_and_reading_are_inverse(shape: tuple[int, int, int], label_bytes: int, count: int, seed: int):
    layout = RecordFormat(image_shape=shape, label_bytes=label_bytes)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = rng.integers(0, 256, (count, label_bytes), dtype=np.uint8)
    records = layout.pack(images, labels)
    assert np.array_equal(layout.images(records), images)
    assert np.array_equal(layout.labels(records), labels[:, -1])


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere\.bin: cannot read this data file: No such file"):
        map_records(tmp_path / "nowhere.bin", SMALL)


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(DataError, match="cannot read this data file"):
        map_records(tmp_path, SMALL)


@pytest.mark.parametrize(("size", "record", "rest"), [(0, 0, 0), (18, 0, 18), (20, 1, 1), (19 * 5 + 7, 5, 7)])
def test_a_file_cut_short_is_named_with_record_and_offset(tmp_path: Path, size: int, record: int, rest: int):
    path = tmp_path / "short.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(DataError) as caught:
        map_records(path, SMALL)
    text = str(caught.value)
    assert str(path) in text
    assert f"record {record} (byte offset {record * 19:,}) has {rest:,}" in text
    assert len(text.splitlines()) <= 3


def test_a_wide_label_takes_both_bytes_the_high_one_first():
    layout = RecordFormat(image_shape=(2, 3, 3), label_bytes=2, wide=True)
    labels = np.array([0, 1, 255, 256, 300, 65_535])
    images = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 3), dtype=np.uint8)
    records = layout.pack(images, labels)
    assert records[:, :2].tolist() == [[label // 256, label % 256] for label in labels.tolist()]
    assert layout.labels(records).tolist() == labels.tolist()
    assert np.array_equal(layout.images(records), images)


def test_records_may_have_names_of_their_own(tmp_path: Path):
    layout = RecordFormat(image_shape=(1, 1, 3))
    (tmp_path / "x.bin").write_bytes(bytes(8))
    named = ImageDataset("x", ["a"], layout, [map_records(tmp_path / "x.bin", layout, keys=["one.jpg", "two.jpg"])])
    assert [named.key(index) for index in range(2)] == ["one.jpg", "two.jpg"]
    assert named.take(np.array([1])).key(0) == "two.jpg"
