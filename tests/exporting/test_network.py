import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from thumbnet.config import DistortConfig
from thumbnet.exporting.network import PictureNet
from thumbnet.input.distort import prepare


class Shows(nn.Module):
    """Keeps what it is asked about, and answers with its first three values."""

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        self.seen = images_NCHW
        return images_NCHW.flatten(1)[:, :3]


def pictures(height: int, width: int, channels: int) -> np.ndarray:
    """Noise, flat ones, and one that is flat but for a single value."""
    images = np.random.default_rng(0).integers(0, 256, (6, height, width, channels), dtype=np.uint8)
    images[1], images[2], images[3], images[4] = 0, 255, 137, 137
    images[4, height // 2, width // 2, 0] = 138
    return images


@pytest.mark.parametrize("standardize", ["image", "dataset", "mean"])
@pytest.mark.parametrize(
    ("shape", "crop"), [((32, 32, 3), 24), ((32, 32, 3), 32), ((13, 13, 3), 8), ((9, 9, 3), 12), ((9, 14, 3), 11)]
)
def test_the_input_is_that_of_an_evaluation(shape: tuple[int, int, int], crop: int, standardize: str) -> None:
    config = DistortConfig(crop=crop, standardize=standardize)  # type: ignore[arg-type]
    images, network = pictures(*shape), Shows()
    probabilities = PictureNet(network, config, shape)(torch.from_numpy(images))
    expected = prepare(images, config)
    torch.testing.assert_close(network.seen, expected.contiguous(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probabilities, expected.flatten(1)[:, :3].softmax(1), rtol=1e-5, atol=1e-5)


def test_pictures_of_one_channel() -> None:
    config, network = dataclasses.replace(DistortConfig(), crop=8), Shows()
    images = pictures(10, 10, 1)
    PictureNet(network, config, (10, 10, 1))(torch.from_numpy(images))
    torch.testing.assert_close(network.seen, prepare(images, config).contiguous(), rtol=1e-5, atol=1e-5)
