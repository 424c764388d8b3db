"""Pictures in memory, and ways to distort them."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import strategies as st

from thumbnet.config import DistortConfig

KINDS = ("noise", "flat", "flat channels", "almost flat")


class Pictures:
    """A data set of random pictures, with the interface of ImageDataset that the input uses."""

    name = "pictures"

    def __init__(self, count: int, shape: tuple[int, int, int] = (32, 32, 3)) -> None:
        rng = np.random.default_rng(count)
        height, width, channels = shape
        self.image_shape = shape
        self.images_NCHW = rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
        self.labels = rng.integers(0, 10, count)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images_NCHW[indices].transpose(0, 2, 3, 1), self.labels[indices]

    def release(self) -> None:
        """There are no pages to give back."""


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures


def images_of(kind: str, count: int, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Return pictures of a kind, uint8 [count, *shape]; the flat ones are where standardization is hardest."""
    if kind == "noise":
        images = rng.integers(0, 256, (count, *shape))
    elif kind == "flat":
        images = np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 1)), (count, *shape))
    elif kind == "flat channels":
        images = np.broadcast_to(rng.integers(0, 256, (count, 1, 1, shape[2])), (count, *shape))
    else:  # a single grey level of difference at a few pixels, at either end of the range
        images = np.where(rng.random((count, *shape)) < 0.01, 1, 0) + rng.choice([0, 254], (count, 1, 1, 1))
    return images.astype(np.uint8, order="C")


@pytest.fixture(scope="session", params=KINDS)
def some_images(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    """What draws pictures of each kind: of a count, a shape and a generator."""
    return functools.partial(images_of, request.param)


@st.composite
def pictures_to_distort(draw: st.DrawFn, count: int) -> tuple[np.ndarray, DistortConfig, int]:
    """Pictures uint8 [count, H, W, C], distortions that fit them, and a seed."""
    height, width, pad = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(0, 6))
    config = DistortConfig(
        crop=(crop := draw(st.integers(1, min(height, width) + 2 * pad))),
        pad=pad,
        flip=draw(st.sampled_from(["none", "random", "alternate"])),
        brightness=draw(st.sampled_from([0.0, 1.0, 63.0, 255.0])),
        contrast=draw(st.sampled_from([(1.0, 1.0), (0.2, 1.8), (0.0, 0.0), (0.01, 0.1), (5.0, 100.0)])),
        standardize=draw(st.sampled_from(["image", "dataset", "mean"])),
        cutout=draw(st.integers(0, crop)),
    )
    channels = 3 if config.standardize != "image" else draw(st.sampled_from([1, 3, 4]))
    seed = draw(st.integers(0, 2**63 - 1))
    rng = np.random.default_rng(seed % 2**32)
    images_NHWC = images_of(draw(st.sampled_from(KINDS)), count, (height, width, channels), rng)
    if draw(st.booleans()):  # channel after channel in memory, as in the record files
        images_NHWC = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    return images_NHWC, config, seed


@pytest.fixture(scope="session")
def distortions() -> Callable[[int], st.SearchStrategy[tuple[np.ndarray, DistortConfig, int]]]:
    """`pictures_to_distort`, of a count."""
    return pictures_to_distort
