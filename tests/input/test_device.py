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
KINDS = ["noise", "flat", "flat channels", "almost flat"]


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


def some_images(kind: str, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Return 12 pictures of a kind; the flat ones are where standardization is hardest."""
    if kind == "noise":
        images = rng.integers(0, 256, (12, *shape))
    elif kind == "flat":
        images = np.broadcast_to(rng.integers(0, 256, (12, 1, 1, 1)), (12, *shape))
    elif kind == "flat channels":
        images = np.broadcast_to(rng.integers(0, 256, (12, 1, 1, shape[2])), (12, *shape))
    else:
        images = np.where(rng.random((12, *shape)) < 0.01, 1, 0) + rng.choice([0, 254], (12, 1, 1, 1))
    return images.astype(np.uint8)


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


@pytest.mark.parametrize("kind", KINDS)
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
def test_each_distortion_is_that_of_numpy(kind: str, change: dict[str, Any]) -> None:
    config = DistortConfig(**({"flip": "none"} | change))
    check(some_images(kind, (32, 32, 3), np.random.default_rng(0)), config)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    pad=st.integers(0, 6),
    flip=st.sampled_from(["none", "random", "alternate"]),
    brightness=st.sampled_from([0.0, 1.0, 63.0, 255.0]),
    contrast=st.sampled_from([(1.0, 1.0), (0.2, 1.8), (0.0, 0.0), (0.01, 0.1), (5.0, 100.0)]),
    standardize=st.sampled_from(["image", "dataset", "mean"]),
    seed=st.integers(0, 2**63 - 1),
)
def test_all_together_are_those_of_numpy(
    data: st.DataObject,
    kind: str,
    height: int,
    width: int,
    pad: int,
    flip: Any,
    brightness: float,
    contrast: tuple[float, float],
    standardize: Any,
    seed: int,
) -> None:
    crop = data.draw(st.integers(1, min(height, width) + 2 * pad), label="crop")
    cutout = data.draw(st.integers(0, crop), label="cutout")
    channels = 3 if standardize != "image" else data.draw(st.sampled_from([1, 3, 4]), label="channels")
    config = DistortConfig(
        crop=crop, pad=pad, flip=flip, brightness=brightness, contrast=contrast, standardize=standardize, cutout=cutout
    )
    check(some_images(kind, (height, width, channels), np.random.default_rng(seed % 2**32)), config, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
def test_large_pictures_lose_nothing(kind: str) -> None:
    check(some_images(kind, (300, 300, 3), np.random.default_rng(2)), DistortConfig(crop=300, contrast=(0.2, 1.8)))


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
