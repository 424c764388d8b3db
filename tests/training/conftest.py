from collections.abc import Iterator

import numpy as np
import pytest
import torch

from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.data.shapes import draw_shapes


@pytest.fixture(scope="session")
def splits() -> Splits:
    """The built-in shapes: 1,000 to train on, 300 to validate, 200 to test."""
    train, test = draw_shapes()
    return Splits(train=_first(train, 0, 1000), validation=_first(train, 1000, 1300), test=_first(test, 0, 200))


def _first(dataset: ImageDataset, start: int, stop: int) -> ImageDataset:
    return dataset.take(np.arange(start, stop))


@pytest.fixture
def recipe() -> Recipe:
    """A short training of the classic network in float32, whose batches straddle epochs."""
    return load_preset(
        "classic",
        {
            "data.name": "shapes",
            "input.batch_size": 48,
            "train.steps": 30,
            "train.precision": "fp32",
            "train.log_every": 5,
            "train.summary_every": 0,
            "train.checkpoint_every_steps": 10,
        },
    )


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
