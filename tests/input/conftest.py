"""A data set of random pictures in memory, with the interface of ImageDataset that the input uses."""

import numpy as np
import pytest


class Pictures:
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
