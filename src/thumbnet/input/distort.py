"""Distortions of whole batches: crop, flip, brightness, contrast, standardization, cutout.

They are pure functions of the pictures and of draws made beforehand, one entry for every example of the data set, so
that what becomes of a picture depends on (seed, epoch, example) alone.

Brightness, contrast and standardization are affine in the pixels of one channel, so all three are one multiplication
and one addition, whose factors follow from sums over the pixels, which are exact integers. Where there are compiled
kernels, what passes over the pixels is C, and the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from thumbnet.config import DistortConfig
from thumbnet.errors import UsageError
from thumbnet.input.philox import Stream, between, integers
from thumbnet.kernels import load_library

DATASET_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of red, green and blue over the CIFAR-10 training set, on the scale 0..1."""
DATASET_STD = (0.2470, 0.2435, 0.2616)
"""Standard deviation of red, green and blue over the CIFAR-10 training set, on the scale 0..1."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decided, one entry for each example."""

    top: np.ndarray
    """First row of the crop in the (padded) picture, unsigned [n]."""
    left: np.ndarray
    """First column of the crop in the (padded) picture, unsigned [n]."""
    flip: np.ndarray
    """Whether left and right are exchanged, bool [n]."""
    brightness: np.ndarray
    """Added to every pixel, on the scale 0..255, float32 [n]."""
    contrast: np.ndarray
    """Factor about the mean of each channel of the crop, float32 [n]."""
    cutout_top: np.ndarray
    """First row of the cut-out square in the crop, unsigned [n]."""
    cutout_left: np.ndarray
    """First column of the cut-out square in the crop, unsigned [n]."""

    def take(self, indices: np.ndarray) -> Draws:
        """Return the draws of some examples, in the order of `indices` (integers [b])."""
        return Draws(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[Draws]) -> Draws:
        """Return the draws of several groups of examples, one group after the other."""
        return Draws(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Draws)})


def draw(count: int, config: DistortConfig, image_shape: tuple[int, int, int], *, seed: int, epoch: int) -> Draws:
    """Return the draws of every example of a data set for one epoch.

    `distort.order` asks for no draw: contrast turns about the mean of the picture as it is, and nothing is clipped, so
    brightness b and contrast c give c (x + b - (m + b)) + m + b = c (x - m) + m + b in either order.

    Args:
        count: examples of the data set.
        config: which distortions.
        image_shape: (height, width, channels) of the pictures.
        seed: seed of the run, 0 to 2**63 - 1.
        epoch: epoch, from 0.

    Raises:
        UsageError: the crop is larger than the padded picture.
    """
    rows, columns = (side + 2 * config.pad - config.crop + 1 for side in image_shape[:2])
    if rows < 1 or columns < 1:
        size = f"{image_shape[0]}x{image_shape[1]}"
        raise UsageError(
            f"distort.crop is {config.crop}: there is no such square in pictures of {size} with distort.pad"
            f" {config.pad}\nmake distort.crop at most {min(image_shape[:2]) + 2 * config.pad}, or distort.pad larger"
        )
    places = config.crop - config.cutout + 1 if config.cutout else 1
    low, high = config.contrast

    def below(limit: int, stream: Stream) -> np.ndarray:
        if limit == 1:
            return np.broadcast_to(np.uint8(0), count)
        return integers(count, limit, seed=seed, epoch=epoch, stream=stream)

    def within(lowest: float, highest: float, stream: Stream) -> np.ndarray:
        if lowest == highest:
            return np.broadcast_to(np.float32(lowest), count)
        return between(count, lowest, highest, seed=seed, epoch=epoch, stream=stream)

    return Draws(
        top=below(rows, Stream.TOP),
        left=below(columns, Stream.LEFT),
        flip=_flips(count, config, seed, epoch),
        brightness=within(-config.brightness, config.brightness, Stream.BRIGHTNESS),
        contrast=within(low, high, Stream.CONTRAST),
        cutout_top=below(places, Stream.CUTOUT_TOP),
        cutout_left=below(places, Stream.CUTOUT_LEFT),
    )


def _flips(count: int, config: DistortConfig, seed: int, epoch: int) -> np.ndarray:
    """Return which examples are flipped, bool [count]."""
    if config.flip == "none":
        return np.broadcast_to(np.bool_(False), count)
    alternate = config.flip == "alternate"
    bits = integers(count, 2, seed=seed, epoch=0 if alternate else epoch, stream=Stream.FLIP).astype(bool)
    return ~bits if alternate and epoch % 2 else bits


def distort(images_NHWC: np.ndarray, draws: Draws, config: DistortConfig) -> torch.Tensor:
    """Distort a batch for training.

    Args:
        images_NHWC: uint8 [N, H, W, C]; fastest as a view of memory in the order N, C, H, W.
        draws: the draws of these N examples.
        config: which distortions.

    Returns:
        float32 [N, C, crop, crop] in channels-last memory format; a cut-out square is 0, the mean.
    """
    crops_NCHW = _crop(images_NHWC.transpose(0, 3, 1, 2), draws, config)
    out_NHWC = _adjust(crops_NCHW, draws.contrast, draws.brightness, config)
    if config.cutout:
        for image_HWC, top, left in zip(out_NHWC, draws.cutout_top.tolist(), draws.cutout_left.tolist(), strict=True):
            image_HWC[top : top + config.cutout, left : left + config.cutout] = 0
    return torch.from_numpy(out_NHWC).permute(0, 3, 1, 2)


def prepare(images_NHWC: np.ndarray, config: DistortConfig) -> torch.Tensor:
    """Make the input of the network for evaluation: central crop, or zeros around a smaller picture; standardization.

    An odd difference puts the extra row or column below or right, as TensorFlow's `resize_image_with_crop_or_pad` does.

    Args:
        images_NHWC: uint8 [N, H, W, C].
        config: which size and standardization.

    Returns:
        float32 [N, C, crop, crop] in channels-last memory format.
    """
    count, height, width, channels = images_NHWC.shape
    crops_NCHW = np.zeros((count, channels, config.crop, config.crop), np.uint8)
    (rows_from, rows_to), (columns_from, columns_to) = centre(height, config.crop), centre(width, config.crop)
    crops_NCHW[:, :, rows_to, columns_to] = images_NHWC.transpose(0, 3, 1, 2)[:, :, rows_from, columns_from]
    ones = np.ones(count, np.float32)
    return torch.from_numpy(_adjust(crops_NCHW, ones, 0 * ones, config)).permute(0, 3, 1, 2)


def centre(side: int, crop: int) -> tuple[slice, slice]:
    """Return the part of a side that an evaluation takes, and where that is put in the crop."""
    length = min(side, crop)
    taken, put = max(side - crop, 0) // 2, max(crop - side, 0) // 2
    return slice(taken, taken + length), slice(put, put + length)


def _crop(pixels_NCHW: np.ndarray, draws: Draws, config: DistortConfig) -> np.ndarray:
    """Return the crops, mirrored where that was drawn, uint8 [N, C, crop, crop], contiguous."""
    count, channels, height, width = pixels_NCHW.shape
    library = load_library()
    if library.handle is not None:
        if pixels_NCHW.strides[1:] != (height * width, width, 1):
            pixels_NCHW = np.ascontiguousarray(pixels_NCHW)
        crops = torch.empty(count, channels, config.crop, config.crop, dtype=torch.uint8)
        top, left, flip = draws.top.astype(np.int64), draws.left.astype(np.int64), draws.flip.astype(np.uint8)
        sizes = (count, pixels_NCHW.strides[0], channels, height, width, config.crop, config.pad)
        library.call("crop", crops, pixels_NCHW, top, left, flip, *sizes)
        return crops.numpy()
    if config.pad:
        border = (config.pad, config.pad)
        pixels_NCHW = np.pad(pixels_NCHW, ((0, 0), (0, 0), border, border), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(pixels_NCHW, (config.crop, config.crop), axis=(2, 3))
    crops_NCHW = windows[np.arange(count), :, draws.top, draws.left]
    crops_NCHW[draws.flip] = crops_NCHW[draws.flip][..., ::-1]
    return crops_NCHW


def _adjust(
    crops_NCHW: np.ndarray, contrast_N: np.ndarray, brightness_N: np.ndarray, config: DistortConfig
) -> np.ndarray:
    """Apply brightness, contrast and standardization to uint8 crops; returns float32 [N, h, w, C], contiguous."""
    count, channels, height, width = crops_NCHW.shape
    pixels = height * width
    planes_NCP = crops_NCHW.reshape(count, channels, pixels)
    contrast_N1 = contrast_N[:, None].astype(np.float64)
    sum_NC, square_NC = _plane_sums(planes_NCP)
    mean_NC = sum_NC / pixels
    # What follows works on x - centre, small whole numbers: exact in float32, and with no large numbers left to cancel
    # where a flat picture is blown up by its tiny deviation.
    centre_NC = np.rint(mean_NC).astype(np.int64)
    rest_NC = mean_NC - centre_NC
    if config.standardize == "image":
        variance_NC = (square_NC - centre_NC * (2 * sum_NC - pixels * centre_NC)) / pixels - rest_NC**2
        # Brightness moves the whole picture, so it goes away with the mean of the picture.
        level_NC = mean_NC - mean_NC.mean(axis=1, keepdims=True)
        # The variance of a picture is the mean of its channels' variances plus the variance of their means.
        deviation_N1 = np.sqrt((contrast_N1**2 * variance_NC + level_NC**2).mean(axis=1, keepdims=True))
        divisor_NC = np.maximum(deviation_N1, 1 / np.sqrt(channels * pixels))
    else:
        level_NC = mean_NC + brightness_N[:, None] - 255 * np.array(DATASET_MEAN)
        divisor_NC = 255 * np.array(DATASET_STD)[None, :] if config.standardize == "dataset" else np.ones((1, 1))
    # (contrast (x - mean) + level) / divisor
    scale_NC = contrast_N1 / divisor_NC
    shift_NC = level_NC / divisor_NC - rest_NC * scale_NC
    factors_3NC = np.empty((3, count, channels), np.float32)
    factors_3NC[0], factors_3NC[1], factors_3NC[2] = centre_NC, scale_NC, shift_NC
    return _affine(planes_NCP, factors_3NC).reshape(count, height, width, channels)


def _plane_sums(planes_NCP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each plane's pixels and of their squares, int64 [N, C]."""
    count, channels, pixels = planes_NCP.shape
    library = load_library()
    if library.handle is not None:
        sum_NC, square_NC = np.empty((2, count, channels), np.int64)
        library.call("plane_sums", torch.from_numpy(planes_NCP), sum_NC, square_NC, count * channels, pixels)
        return sum_NC, square_NC
    squares_NCP = np.square(planes_NCP, dtype=np.uint16)
    return planes_NCP.sum(axis=2, dtype=np.int64), squares_NCP.sum(axis=2, dtype=np.int64)


def _affine(planes_NCP: np.ndarray, factors_3NC: np.ndarray) -> np.ndarray:
    """Return (planes - centre) * scale + shift, rounded to float32 after each of the three, [N, P, C], contiguous."""
    count, channels, pixels = planes_NCP.shape
    library = load_library()
    if library.handle is not None:
        out = torch.empty(count, pixels, channels)
        library.call("affine", out, planes_NCP, *factors_3NC, count, channels, pixels)
        return out.numpy()
    centre_NC1, scale_NC1, shift_NC1 = factors_3NC[..., None]
    values_NCP = planes_NCP.astype(np.float32)
    values_NCP -= centre_NC1
    values_NCP *= scale_NC1
    out_NPC = np.empty((count, pixels, channels), np.float32)
    np.add(values_NCP, shift_NC1, out=out_NPC.transpose(0, 2, 1))
    return out_NPC
