import os
from pathlib import Path

import numpy as np
import pytest

from thumbnet.data.reader import RecordReader
from thumbnet.data.records import RecordFormat
from thumbnet.errors import DataError

COUNT = 5


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).integers(0, 256, COUNT * 3073, dtype=np.uint8).tobytes()


@pytest.fixture
def path(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    return path


def test_a_record_is_label_and_picture(path: Path, content: bytes):
    with RecordReader(path) as reader:
        assert len(reader) == COUNT
        for index in (3, 0, 4, 4, 1):
            label, image = reader.read(index)
            record = content[index * 3073 : (index + 1) * 3073]
            assert label == record[0]
            assert type(label) is int
            assert (image.shape, image.dtype) == ((32, 32, 3), np.float32)
            for row, column, channel in [(0, 0, 0), (31, 31, 2), (7, 20, 1)]:
                assert image[row, column, channel] == record[1 + channel * 1024 + row * 32 + column]
            image += 1  # it is the caller's own


def test_readers_of_one_file_do_not_disturb_each_other(path: Path, content: bytes):
    with RecordReader(path) as one, RecordReader(str(path)) as other:
        for index in range(COUNT):
            assert one.read(index).label == content[index * 3073]
            assert other.read(COUNT - 1 - index).label == content[(COUNT - 1 - index) * 3073]


def test_other_layouts(tmp_path: Path):
    path = tmp_path / "train.bin"
    path.write_bytes(bytes([11, 99, *range(12)]) * 2)
    layout = RecordFormat(image_shape=(2, 2, 3), label_bytes=2)
    with RecordReader(path, layout) as reader:
        label, image = reader.read(1)
        assert label == 99
        assert image[0, 1].tolist() == [1, 5, 9]


@pytest.mark.parametrize("index", [-1, COUNT, 10**12])
def test_a_record_that_there_is_not(index: int, path: Path):
    with RecordReader(path) as reader, pytest.raises(IndexError, match=f"no record {index}, they are numbered 0 to 4"):
        reader.read(index)


def test_a_closed_reader_says_so(path: Path):
    reader = RecordReader(path)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match=r"data_batch_1\.bin: this reader is closed"):
        reader.read(0)


@pytest.mark.parametrize("size", [0, 3072, 3 * 3073 + 1])
def test_a_file_of_another_length(size: int, tmp_path: Path):
    path = tmp_path / "short.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"short\.bin: {size:,} bytes are not a whole number of records of 3,073"):
        RecordReader(path)


def test_a_missing_file_and_a_folder(tmp_path: Path):
    for path in (tmp_path / "nowhere.bin", tmp_path):
        with pytest.raises(DataError, match="cannot read this data file"):
            RecordReader(path)


def test_a_file_that_is_cut_short_while_it_is_read(path: Path):
    with RecordReader(path) as reader:
        os.truncate(path, 4 * 3073 + 10)
        assert reader.read(3).image.shape == (32, 32, 3)
        with pytest.raises(DataError, match="cut short at record 4 since it was opened"):
            reader.read(4)
