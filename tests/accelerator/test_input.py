from typing import Any

import numpy as np
import pytest
import torch

from thumbnet import engine
from thumbnet.config import DistortConfig, InputConfig
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.shapes import draw_shapes
from thumbnet.input import pipeline
from thumbnet.input.pipeline import Batch, TrainingInput

DISTORT = DistortConfig(crop=24, pad=2, brightness=63.0, contrast=(0.2, 1.8), cutout=5)
HOST = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return draw_shapes()[0].take(np.arange(400))


def take(
    dataset: ImageDataset, device: torch.device, count: int = 9, *, pool_mib: int = 512, **options: Any
) -> list[Batch]:
    config = InputConfig(batch_size=options.pop("batch_size", 60), pool=options.pop("pool", 1.0), pool_mib=pool_mib)
    with TrainingInput(dataset, DISTORT, config, seed=3, device=device, **options) as batches:
        return [next(batches) for _ in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_step": 5, "pool": 0.4},
        {"batch_size": 7, "pool": 0.0},
        {"batch_size": 400, "share": slice(100, 250)},
        {"batch_size": 7, "share": slice(2, 5)},
        {"pool_mib": 1},  # the pictures take 1.2 MiB
    ],
    ids=str,
)
def test_batches_are_those_of_the_host(accelerator: Any, dataset: ImageDataset, options: dict[str, Any]) -> None:
    there = take(dataset, engine.device(), **options)
    for one, other in zip(there, take(dataset, HOST, **options), strict=True):
        assert {one.images.device.type, one.labels.device.type} == {engine.device().type}
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(one.indices, other.indices)
        assert one.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(one.images.cpu(), other.images, rtol=1e-5, atol=1e-5)


def test_only_draws_go_over_and_many_at_once(
    accelerator: Any, dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SENT_EXAMPLES", 200)  # three batches
    take(dataset, engine.device(), 9)
    sent = [line for line in accelerator.waits if " in send:" in line]
    assert len(sent) == 3
    assert all(" in __init__:" in line for line in accelerator.waits if line not in sent)


def test_pictures_beyond_the_pool_stay_on_the_host(accelerator: Any, dataset: ImageDataset) -> None:
    take(dataset, engine.device(), 9, pool_mib=1)
    # Pictures and labels of each batch.
    assert len(accelerator.waits) == 18
