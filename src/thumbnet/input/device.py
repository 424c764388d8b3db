"""Training pictures that live on an accelerator, where batches are cut out of them and distorted.

What a batch is follows from the same numbers as on the host, `Draws`, which are all that is sent to the device. What
`thumbnet.input.distort` does in NumPy is done here in torch, equal to rounding, in whole numbers and float32: not every
accelerator has float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thumbnet.config import DistortConfig
from thumbnet.input.distort import DATASET_MEAN, DATASET_STD, Draws

if TYPE_CHECKING:
    from thumbnet.data.dataset import ImageDataset


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host where CUDA can copy it from without anybody waiting; for other devices, itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device, without waiting for it if it is pinned.

    From other memory the copy must be waited for: MPS may come to read it when it has been given away (pytorch#189690).
    """
    return tensor.to(device, non_blocking=tensor.is_pinned())


def pack(indices: np.ndarray, draws: Draws) -> Tensor:
    """Return what decides a batch as one tensor for `ResidentPictures.distorted`.

    Args:
        indices: examples of the data set, whole numbers [b].
        draws: their draws.

    Returns:
        int32 [8, b]; the last two rows are the bits of float32 numbers.
    """
    whole = [indices, draws.top, draws.left, draws.flip, draws.cutout_top, draws.cutout_left]
    bits = [draws.brightness.view(np.int32), draws.contrast.view(np.int32)]
    return torch.from_numpy(np.stack([*(row.astype(np.int32) for row in whole), *bits]))


class ResidentPictures:
    """All pictures and labels of a data set on a device."""

    def __init__(self, dataset: ImageDataset, config: DistortConfig, device: torch.device) -> None:
        """Copy the data set there.

        Raises:
            DataError: a record is damaged.
        """
        images_NHWC, labels = dataset.gather(np.arange(len(dataset)))
        self._images_NHWC = torch.from_numpy(np.ascontiguousarray(images_NHWC)).to(device)
        self._labels = torch.from_numpy(labels).to(device)
        self._config = config
        self._mean = 255 * torch.tensor(DATASET_MEAN).to(device)
        self._std = 255 * torch.tensor(DATASET_STD).to(device) if config.standardize == "dataset" else 1.0

    def labels(self, packed: Tensor) -> Tensor:
        """Return the labels of a batch, int64 [b]; `packed` is from `pack`, on the device."""
        return self._labels[packed[0].long()]

    def distorted(self, packed: Tensor) -> Tensor:
        """Distort a batch; `packed` is from `pack`, on the device.

        Returns:
            float32 [b, C, crop, crop] in channels-last memory format, as `thumbnet.input.distort.distort` returns.
        """
        config = self._config
        index, top, left, flip, hole_top, hole_left = packed[:6].long()[:, :, None].unbind()
        brightness_N1, contrast_N1 = packed[6:].view(torch.float32)[:, :, None].unbind()
        _, height, width, _ = self._images_NHWC.shape
        place = torch.arange(config.crop, device=packed.device)
        rows_Nh = _reflect(top + place - config.pad, height)
        columns_Nw = _reflect(left + torch.where(flip == 1, config.crop - 1 - place, place) - config.pad, width)
        crops_NhwC = self._images_NHWC[index[:, :, None], rows_Nh[:, :, None], columns_Nw[:, None, :]]
        out_NhwC = self._adjust(crops_NhwC, brightness_N1, contrast_N1)
        if config.cutout:
            hole_Nh, hole_Nw = ((place >= start) & (place < start + config.cutout) for start in (hole_top, hole_left))
            out_NhwC.masked_fill_((hole_Nh[:, :, None] & hole_Nw[:, None, :])[..., None], 0)
        return out_NhwC.permute(0, 3, 1, 2)

    def _adjust(self, crops_NhwC: Tensor, brightness_N1: Tensor, contrast_N1: Tensor) -> Tensor:
        """Apply brightness, contrast and standardization to uint8 crops; returns float32 of the same shape."""
        count, height, width, channels = crops_NhwC.shape
        area = height * width
        pixels_NPC = crops_NhwC.view(count, area, channels).int()
        sum_NC = pixels_NPC.sum(1, dtype=torch.int32)
        # The mean as a whole number, which is taken off exactly, and a rest: why is told in `distort._adjust`.
        centre_NC = (sum_NC + area // 2) // area
        rest_NC = (sum_NC - centre_NC * area) / area
        values_NPC = (pixels_NPC - centre_NC[:, None]).float()
        divisor: Tensor | float
        if self._config.standardize == "image":
            variance_NC = (values_NPC - rest_NC[:, None]).square().mean(1)
            # Differences between channels, for the same reason: whole numbers first.
            level_NC = (centre_NC - centre_NC[:, :1]) + rest_NC
            level_NC = level_NC - level_NC.mean(1, keepdim=True)
            deviation_N1 = (contrast_N1.square() * variance_NC + level_NC.square()).mean(1, keepdim=True).sqrt()
            divisor = deviation_N1.clamp_min(1 / math.sqrt(channels * area))
        else:
            level_NC = centre_NC + rest_NC + brightness_N1 - self._mean
            divisor = self._std
        scale_NC, shift_NC = contrast_N1 / divisor, level_NC / divisor
        out_NPC = (values_NPC - rest_NC[:, None]) * scale_NC[:, None] + shift_NC[:, None]
        return out_NPC.view(crops_NhwC.shape)


def _reflect(position: Tensor, side: int) -> Tensor:
    """Return the place in 0..side-1 that a position beyond the border shows, as `numpy.pad` reflects."""
    return side - 1 - (side - 1 - position % max(2 * side - 2, 1)).abs()
