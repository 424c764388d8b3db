from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.config import DistortConfig
from thumbnet.errors import UsageError
from thumbnet.input.distort import Draws, distort, draw, prepare
from thumbnet.kernels import Library

SHAPE = (32, 32, 3)
EVERYTHING = DistortConfig(crop=24, pad=2, brightness=63.0, contrast=(0.2, 1.8), cutout=7)


# The oracle: one picture at a time, in float64, each step of the tutorial by itself.


def reflect(position: int, side: int) -> int:
    """Return the place in 0..side-1 that a position beyond the border shows; the border itself is not repeated."""
    while side > 1 and not 0 <= position < side:
        position = -position if position < 0 else 2 * (side - 1) - position
    return position if side > 1 else 0


def cropped(image_HWC: np.ndarray, top: int, left: int, crop: int, pad: int) -> np.ndarray:
    height, width, channels = image_HWC.shape
    out = np.empty((crop, crop, channels))
    for row in range(crop):
        for column in range(crop):
            out[row, column] = image_HWC[reflect(top + row - pad, height), reflect(left + column - pad, width)]
    return out


def contrasted(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    out = np.empty_like(image_HWC)
    for channel in range(image_HWC.shape[2]):
        plane = image_HWC[:, :, channel]
        mean = sum(plane.ravel().tolist()) / plane.size
        out[:, :, channel] = (plane - mean) * factor + mean
    return out


def standardized(image_HWC: np.ndarray, kind: str) -> np.ndarray:
    if kind != "image":
        out = np.empty_like(image_HWC)
        for channel, (mean, std) in enumerate([(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]):
            rest = image_HWC[:, :, channel] / 255 - mean
            out[:, :, channel] = rest / std if kind == "dataset" else rest * 255
        return out
    values = image_HWC.ravel().tolist()
    mean = sum(values) / len(values)
    std = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return (image_HWC - mean) / max(std, 1 / len(values) ** 0.5)


def distorted_by_hand(
    image_HWC: np.ndarray, draws: Draws, i: int, config: DistortConfig, *, contrast_first: bool
) -> np.ndarray:
    image = cropped(image_HWC, int(draws.top[i]), int(draws.left[i]), config.crop, config.pad)
    if draws.flip[i]:
        image = np.stack([row[::-1] for row in image])
    if contrast_first:
        image = contrasted(image, float(draws.contrast[i])) + float(draws.brightness[i])
    else:
        image = contrasted(image + float(draws.brightness[i]), float(draws.contrast[i]))
    image = standardized(image, config.standardize)
    for row in range(config.cutout):
        for column in range(config.cutout):
            image[int(draws.cutout_top[i]) + row, int(draws.cutout_left[i]) + column] = 0
    return image


def both_ways(function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Return what a function of the input returns; with the C kernels and in NumPy it must be the same to the bit."""
    own = function(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thumbnet.input.distort.load_library", lambda: Library(handle=None, why="left out"))
        plain = function(*arguments)
    assert torch.equal(own, plain)
    return own


def check(images_NHWC: np.ndarray, draws: Draws, config: DistortConfig) -> None:
    """Compare a batch with the oracle, with brightness first and with contrast first."""
    before = images_NHWC.copy()
    out = both_ways(distort, images_NHWC, draws, config)
    assert out.dtype == torch.float32
    assert out.shape == (len(images_NHWC), images_NHWC.shape[3], config.crop, config.crop)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(images_NHWC, before)
    for i, image_HWC in enumerate(images_NHWC):
        for contrast_first in (False, True):
            expected = distorted_by_hand(image_HWC.astype(float), draws, i, config, contrast_first=contrast_first)
            np.testing.assert_allclose(out[i].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=tolerance(config))


def tolerance(config: DistortConfig) -> float:
    """Return what rounding may change: 1e-5 of a deviation, which without division is 1e-5 of some 60 grey levels."""
    return 6e-4 if config.standardize == "mean" else 1e-5


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
        {"crop": 32, "standardize": "mean"},
        {"crop": 32, "pad": 4},
        {"crop": 24, "cutout": 12},
        {"crop": 24, "brightness": 63.0, "contrast": (0.2, 1.8), "flip": "random", "order": "random"},
    ],
    ids=str,
)
def test_each_distortion_agrees_with_the_oracle(some_images: Callable[..., np.ndarray], change: dict[str, Any]) -> None:
    config = DistortConfig(**({"flip": "none"} | change))
    images_NHWC = some_images(6, SHAPE, np.random.default_rng(0))
    check(images_NHWC, draw(6, config, SHAPE, seed=1, epoch=1), config)


@settings(max_examples=60)
@given(data=st.data(), epoch=st.integers(0, 100))
def test_all_together_agree_with_the_oracle(distortions: Callable[[int], Any], data: st.DataObject, epoch: int) -> None:
    images_NHWC, config, seed = data.draw(distortions(3))
    check(images_NHWC, draw(3, config, images_NHWC.shape[1:], seed=seed, epoch=epoch), config)


def test_sums_stay_exact_in_large_pictures(some_images: Callable[..., np.ndarray]) -> None:
    config = DistortConfig(crop=300, contrast=(0.2, 1.8))
    shape = (300, 300, 3)
    images_NHWC = some_images(1, shape, np.random.default_rng(2))
    draws = draw(1, config, shape, seed=1, epoch=1)
    expected = images_NHWC[0].astype(float)[:, :: -1 if draws.flip[0] else 1]
    mean_C = expected.mean(axis=(0, 1))
    expected = (expected - mean_C) * float(draws.contrast[0]) + mean_C
    expected = (expected - expected.mean()) / max(expected.std(), expected.size**-0.5)
    out = both_ways(distort, images_NHWC, draws, config)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    crop=st.integers(1, 15),
    standardize=st.sampled_from(["image", "dataset", "mean"]),
    seed=st.integers(0, 1000),
)
def test_prepare_agrees_with_the_oracle(
    some_images: Callable[..., np.ndarray], height: int, width: int, crop: int, standardize: Any, seed: int
) -> None:
    images_NHWC = some_images(2, (height, width, 3), np.random.default_rng(seed))
    config = DistortConfig(crop=crop, standardize=standardize, cutout=1, pad=2, brightness=63.0)
    out = both_ways(prepare, images_NHWC, config)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    for i, image_HWC in enumerate(images_NHWC):
        expected = np.zeros((crop, crop, 3))
        for row in range(crop):
            for column in range(crop):
                # TensorFlow: crop at (side - crop) // 2, or pad (crop - side) // 2 zeros before.
                y = row + (height - crop) // 2 if height >= crop else row - (crop - height) // 2
                x = column + (width - crop) // 2 if width >= crop else column - (crop - width) // 2
                if 0 <= y < height and 0 <= x < width:
                    expected[row, column] = image_HWC[y, x]
        expected = standardized(expected, standardize)
        np.testing.assert_allclose(out[i].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=tolerance(config))


def test_draws_cover_their_ranges() -> None:
    count = 20_000
    draws = draw(count, EVERYTHING, SHAPE, seed=0, epoch=0)
    assert set(draws.top.tolist()) == set(draws.left.tolist()) == set(range(32 + 4 - 24 + 1))
    assert set(draws.cutout_top.tolist()) == set(draws.cutout_left.tolist()) == set(range(24 - 7 + 1))
    assert -63 <= draws.brightness.min() < -62.9
    assert 62.9 < draws.brightness.max() <= 63
    assert 0.2 <= draws.contrast.min() < 0.201
    assert 1.799 < draws.contrast.max() <= 1.8
    assert abs(draws.flip.mean() - 0.5) < 0.02
    columns = [draws.top, draws.left, draws.flip, draws.brightness, draws.contrast, draws.cutout_top, draws.cutout_left]
    correlations = np.corrcoef(np.stack([column.astype(float) for column in columns]))
    assert abs(correlations - np.eye(len(columns))).max() < 5 / np.sqrt(count)


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    first = draw(100, EVERYTHING, SHAPE, seed=1, epoch=2)
    assert vars(first).keys() == vars(draw(100, EVERYTHING, SHAPE, seed=1, epoch=2)).keys()
    for name, drawn in vars(first).items():
        np.testing.assert_array_equal(drawn, getattr(draw(100, EVERYTHING, SHAPE, seed=1, epoch=2), name))
        np.testing.assert_array_equal(drawn[:40], getattr(draw(40, EVERYTHING, SHAPE, seed=1, epoch=2), name))
        assert not np.array_equal(drawn, getattr(draw(100, EVERYTHING, SHAPE, seed=2, epoch=2), name))
        assert not np.array_equal(drawn, getattr(draw(100, EVERYTHING, SHAPE, seed=1, epoch=3), name))


def test_one_distortion_more_leaves_the_others_as_they_were() -> None:
    less = draw(100, DistortConfig(brightness=63.0), SHAPE, seed=0, epoch=0)
    more = draw(100, DistortConfig(brightness=63.0, contrast=(0.2, 1.8), cutout=4), SHAPE, seed=0, epoch=0)
    for name in ("top", "left", "flip", "brightness"):
        np.testing.assert_array_equal(getattr(less, name), getattr(more, name))


def test_alternate_flips_exchange_every_epoch() -> None:
    config = DistortConfig(flip="alternate")
    flips = [draw(1000, config, SHAPE, seed=4, epoch=epoch).flip for epoch in range(4)]
    np.testing.assert_array_equal(flips[0], draw(1000, DistortConfig(flip="random"), SHAPE, seed=4, epoch=0).flip)
    np.testing.assert_array_equal(flips[0], ~flips[1])
    np.testing.assert_array_equal(flips[0], flips[2])
    np.testing.assert_array_equal(flips[1], flips[3])
    assert not draw(1000, DistortConfig(flip="none"), SHAPE, seed=4, epoch=1).flip.any()


def test_take_and_concatenate() -> None:
    draws = draw(50, EVERYTHING, SHAPE, seed=0, epoch=0)
    indices = np.array([4, 4, 49, 0])
    taken = draws.take(indices)
    joined = Draws.concatenate([taken, draws])
    for name, drawn in vars(draws).items():
        np.testing.assert_array_equal(getattr(taken, name), drawn[indices])
        np.testing.assert_array_equal(getattr(joined, name), np.concatenate([drawn[indices], drawn]))


@pytest.mark.parametrize(("crop", "pad"), [(33, 0), (41, 4)])
def test_a_crop_that_does_not_fit_is_refused(crop: int, pad: int) -> None:
    with pytest.raises(UsageError, match=rf"distort\.crop is {crop}.*40x32.*pad {pad}\n.*at most {32 + 2 * pad}"):
        draw(5, DistortConfig(crop=crop, pad=pad), (40, 32, 3), seed=0, epoch=0)
