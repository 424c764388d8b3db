import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.config import DistortConfig, InputConfig
from thumbnet.data.dataset import ImageDataset, open_records
from thumbnet.data.records import RecordFormat
from thumbnet.errors import DataError
from thumbnet.input import pipeline, pool
from thumbnet.input.order import BlockOrder, epoch_order
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


@given(
    pool_size=st.integers(1, 60),
    start=st.integers(0, 200),
    steps=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    fill=st.integers(1, 30),
    block=st.none() | st.integers(1, 70),
    share=st.lists(st.booleans(), min_size=1, max_size=9),
)
def test_reads_what_the_order_says(
    dataset: ImageDataset,
    pool_size: int,
    start: int,
    steps: list[int],
    fill: int,
    block: int | None,
    share: list[bool],
) -> None:
    """Any pool, start, blocks, share, and number of examples at a time, and whether the pool is full by then or not."""
    stop = start + sum(steps)
    epochs = range(stop // 60 + 1)
    expected = []
    for epoch in epochs:
        entrances = epoch_order(60, seed=5, epoch=epoch, pool=pool_size)
        expected += (60 * epoch + BlockOrder(epoch, count=60, block=block or 60, seed=5).records(entrances)).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_FILL_BYTES", fill * 60)
        reader = PoolReader(dataset, pool=pool_size, seed=5, position=start, block=block, share=np.array(share))
        for step in steps:
            numbers, images_NHWC, labels = reader.take(step)
            mine = [position for position in range(start, start + step) if share[position % len(share)]]
            assert numbers.tolist() == [expected[position] for position in mine]
            expected_NHWC, expected_labels = dataset.gather(numbers % 60)
            np.testing.assert_array_equal(images_NHWC, expected_NHWC)
            np.testing.assert_array_equal(labels, expected_labels)
            start += step


def batches_of(
    dataset: ImageDataset, *, pool_mib: int, pool: float = 0.3, start_step: int = 0, share: slice = slice(None)
) -> list[Batch]:
    """Return the batches of steps up to 12, of 16 pictures."""
    config = InputConfig(batch_size=16, pool=pool, pool_mib=pool_mib)
    distort = DistortConfig(crop=3, contrast=(0.2, 1.8))
    with TrainingInput(dataset, distort, config, seed=1, start_step=start_step, share=share) as batches:
        return [next(batches) for _ in range(start_step, 12)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if one MiB had room for 18 of the 60 pictures; returns a list that tells of each pool that is opened."""
    opened: list[int] = []
    monkeypatch.setattr(pipeline, "_budget_examples", lambda dataset, config: 18 * config.pool_mib)
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 5 * 60)
    monkeypatch.setattr(pipeline, "PoolReader", lambda *args, **more: opened.append(1) or PoolReader(*args, **more))
    return opened


@pytest.mark.parametrize("start_step", [0, 2, 5])
def test_batches_from_the_pool_are_those_from_memory(dataset: ImageDataset, start_step: int, opened: list[int]) -> None:
    """A pool of 0.3 of the 60 pictures fits, though not all of the pictures do."""
    expected = batches_of(dataset, pool_mib=4, start_step=start_step)
    assert not opened
    found = batches_of(dataset, pool_mib=1, start_step=start_step)
    assert opened
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0], ids=["no pool", "a pool that fits", "a pool that is cut"])
@pytest.mark.parametrize("start_step", [0, 5])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_replicas_make_their_shares_of_the_same_batches(
    dataset: ImageDataset, fraction: float, start_step: int, replicas: int, opened: list[int]
) -> None:
    """From the first step or in mid-epoch; batches of 16 straddle epochs of 60, and three replicas share unevenly."""
    whole = batches_of(dataset, pool_mib=1, pool=fraction)
    shares = [slice(16 * rank // replicas, 16 * (rank + 1) // replicas) for rank in range(replicas)]
    parts = [batches_of(dataset, pool_mib=1, pool=fraction, start_step=start_step, share=share) for share in shares]
    assert len(opened) == 1 + replicas
    for step, batch in enumerate(whole[start_step:]):
        np.testing.assert_array_equal(np.concatenate([part[step].indices for part in parts]), batch.indices)
        assert torch.equal(torch.cat([part[step].labels for part in parts]), batch.labels)
        assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)
    drawn = np.concatenate([batch.indices for batch in whole])[:180].reshape(3, 60)
    assert (np.sort(drawn) == np.arange(60)).all()  # every picture once an epoch


def test_a_pool_cut_by_memory_shuffles_blocks_of_all_files(dataset: ImageDataset, opened: list[int]) -> None:
    """Where the pool fits, what is drawn first is from the front of the files; where it does not, from anywhere."""
    in_order, shuffled = (
        np.concatenate([batch.indices for batch in batches_of(dataset, pool_mib=1, pool=fraction)])[:180].reshape(3, 60)
        for fraction in (0.3, 1.0)
    )
    assert in_order[:, :15].max() < 18 + 15  # nothing comes before it can have entered the pool
    assert (shuffled[:, :15].max(axis=1) >= 18 + 15).all()
    assert len({tuple(np.sort(epoch[:15])) for epoch in shuffled}) == 3


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
    """Of the 10 records that come in with a batch, those that are drawn with it are read first."""
    reader = PoolReader(dataset, pool=20, seed=5, position=0)
    for _ in range(18):
        reader.take(10)
    by_tens = np.sort(np.reshape(read, (20, 10)))
    assert by_tens.ravel().tolist() == [*range(60), *range(60), *range(60), *range(20)]


def test_blocks_are_read_from_front_to_back(dataset: ImageDataset, read: list[int]) -> None:
    reader = PoolReader(dataset, pool=20, seed=5, position=0, block=10)
    for _ in range(10):
        reader.take(10)
    blocks = np.reshape(read, (12, 10))
    order = np.concatenate([BlockOrder(epoch, count=60, block=10, seed=5).records(np.arange(60)) for epoch in (0, 1)])
    assert np.sort(blocks).tolist() == np.sort(order.reshape(12, 10)).tolist()


@pytest.mark.parametrize("replicas", [2, 3, 7])
@pytest.mark.parametrize("block", [None, 10])
def test_each_record_is_read_by_one_replica(
    dataset: ImageDataset, read: list[int], replicas: int, block: int | None
) -> None:
    """In 3 epochs, and of the epoch after them as far as the pools have room."""
    counts = []
    for rank in range(replicas):
        before = len(read)
        reader = PoolReader(dataset, pool=20, seed=5, position=0, block=block, share=np.arange(replicas) == rank)
        for _ in range(18):
            reader.take(10)
        counts.append(len(read) - before)
    assert sum(counts) == 3 * 60 + 20
    assert set(np.bincount(read, minlength=60)) == {3, 4}
    assert min(counts) >= 180 // replicas  # what they hand out; the rest waits in their pools


# In a process of its own: in one that has used and freed memory before, a new array need not show.
POOL_MIB = """
import re, sys
from pathlib import Path
import numpy as np
from thumbnet.data.dataset import open_records
from thumbnet.data.records import RecordFormat
from thumbnet.input.pool import PoolReader

def anonymous_mib():
    # Without the pages of the mapped file, which the system may take back.
    return int(re.search("RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

dataset = open_records("zeros", tuple("abcdefghij"), RecordFormat(), [Path(sys.argv[1])])
before = anonymous_mib()
reader = PoolReader(dataset, pool=30_000, seed=0, position=0, share=np.arange(4) == 1)
for _ in range(40):
    reader.take(1_000)
print(anonymous_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_the_pool_of_one_of_four_replicas_takes_a_quarter_of_the_memory(tmp_path: Path) -> None:
    layout = RecordFormat()
    path = tmp_path / "zeros.bin"
    with path.open("wb") as file:
        file.truncate(40_000 * layout.record_bytes)
    command = [sys.executable, "-c", POOL_MIB, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pool_mib = 30_000 * layout.image_bytes / 2**20
    assert pool_mib / 5 < float(done.stdout) < pool_mib / 2


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
