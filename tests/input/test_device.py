from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.config import DistortConfig
from thumbnet.input.device import ResidentPictures, pack, pin, send
from thumbnet.input.distort import distort, draw

CPU = torch.device("cpu")


class Held:
    """Pictures in memory, as a data set."""

    name = "held"

    def __init__(self, images_NHWC: np.ndarray) -> None:
        self.images_NHWC = images_NHWC
        self.image_shape = images_NHWC.shape[1:]
        self.labels = np.arange(len(images_NHWC)) % 7

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images_NHWC[indices], self.labels[indices]


def check(images_NHWC: np.ndarray, config: DistortConfig, *, seed: int = 1, epoch: int = 1) -> None:
    """Compare batches that repeat and leave out pictures with those that NumPy makes, which has its own oracle."""
    dataset: Any = Held(images_NHWC)
    draws = draw(12, config, dataset.image_shape, seed=seed, epoch=epoch)
    resident = ResidentPictures(dataset, config, CPU)
    for indices in (np.arange(12), np.array([7, 3, 3, 11, 0])):
        packed = pack(indices, draws.take(indices))
        assert packed.dtype == torch.int32
        out, expected = resident.distorted(packed), distort(images_NHWC[indices], draws.take(indices), config)
        assert out.dtype == torch.float32
        assert out.is_contiguous(memory_format=torch.channels_last)
        # Rounding: 1e-5 of a deviation, which without division is 1e-5 of some 60 grey levels.
        atol = 6e-4 if config.standardize == "mean" else 1e-5
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=atol)
        np.testing.assert_array_equal(resident.labels(packed), dataset.labels[indices])


@pytest.mark.parametrize(
    "change",
    [
        {"crop": 32},
        {"crop": 24},
        {"crop": 24, "flip": "random"},
        {"crop": 24, "flip": "alternate"},
        {"crop": 32, "brightness": 63.0, "standardize": "dataset"},
        {"crop": 32, "contrast": (0.2, 1.8)},
        {"crop": 32, "contrast": (0.2, 1.8), "standardize": "dataset"},
        {"crop": 32, "brightness": 63.0, "contrast": (0.2, 1.8), "standardize": "mean"},
        {"crop": 32, "pad": 4},
        {"crop": 24, "cutout": 12, "flip": "random"},
        {"crop": 24, "pad": 2, "brightness": 63.0, "contrast": (0.2, 1.8), "flip": "random", "cutout": 7},
    ],
    ids=str,
)
def test_each_distortion_is_that_of_numpy(some_images: Callable[..., np.ndarray], change: dict[str, Any]) -> None:
    config = DistortConfig(**({"flip": "none"} | change))
    check(some_images(12, (32, 32, 3), np.random.default_rng(0)), config)


@settings(max_examples=60)
@given(data=st.data())
def test_all_together_are_those_of_numpy(distortions: Callable[[int], Any], data: st.DataObject) -> None:
    images_NHWC, config, seed = data.draw(distortions(12))
    check(images_NHWC, config, seed=seed)


def test_large_pictures_lose_nothing(some_images: Callable[..., np.ndarray]) -> None:
    check(some_images(12, (300, 300, 3), np.random.default_rng(2)), DistortConfig(crop=300, contrast=(0.2, 1.8)))


def test_only_memory_that_is_pinned_is_copied_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append("pin") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: asked.append(non_blocking) or tensor)
    tensor = torch.zeros(3)
    for name in ("cuda", "mps", "cpu"):
        assert pin(tensor, torch.device(name)) is tensor
    assert asked == ["pin"]
    send(tensor, torch.device("mps"))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    send(tensor, torch.device("cuda"))
    assert asked == ["pin", False, True]
