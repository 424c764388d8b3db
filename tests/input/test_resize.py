import numpy as np
import pytest
import torch

from thumbnet.input.pipeline import Batch
from thumbnet.input.resize import shrink


def batch_of(images: torch.Tensor) -> Batch:
    count = len(images)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    return Batch(images=channels_last, labels=torch.arange(count), indices=np.arange(count))


def weights(before: int, after: int) -> np.ndarray:
    """Return how a row of pixels becomes a shorter one, [after, before]: by tents as wide as two of the new pixels."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale
    distance = np.abs(np.arange(before) + 0.5 - centres[:, None]) / scale
    tents = np.maximum(1 - distance, 0)
    return tents / tents.sum(1, keepdims=True)


@pytest.mark.parametrize(("crop", "side"), [(32, 24), (32, 16), (28, 21), (9, 4), (5, 1)])
def test_pixels_are_means_of_their_surroundings(crop: int, side: int) -> None:
    images = torch.randn(4, 3, crop, crop, generator=torch.Generator().manual_seed(1))
    found = shrink(batch_of(images), side)
    across = weights(crop, side)
    expected = np.einsum("yh,nchw,xw->ncyx", across, images.double().numpy(), across)
    np.testing.assert_allclose(found.images.numpy(), expected, atol=1e-5)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert found.images.dtype == torch.float32
    assert found.labels.tolist() == [0, 1, 2, 3]


def test_a_share_of_a_batch_becomes_the_same_to_the_bit() -> None:
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    whole = shrink(batch_of(images), 24).images
    assert torch.equal(shrink(batch_of(images[2:4]), 24).images, whole[2:4])


def test_pictures_of_the_right_size_stay_where_they_are() -> None:
    batch = batch_of(torch.randn(2, 3, 24, 24))
    assert shrink(batch, 24) is batch
