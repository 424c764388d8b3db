"""Test-time views: a network is asked about a picture, its mirror image, and both moved.

The figure over views stands beside the single-view one, never in its place: it costs two to ten passes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.config import DistortConfig, EvaluationConfig


def over_views(
    model: nn.Module, distort: DistortConfig, config: EvaluationConfig, image_shape: tuple[int, int, int]
) -> tuple[nn.Module, DistortConfig]:
    """Return a network that answers with what another says to views of each picture, and the input that it takes.

    Args:
        model: the network asked about each view.
        distort: its input.
        config: which views; more than one.
        image_shape: (height, width, channels) of the data set's pictures.
    """
    if config.views != "corners":
        return ViewAverage(model, moved=config.views == "shifts"), distort
    # The views are cut out of the whole picture, with the border that training draws its crops from.
    whole = dataclasses.replace(distort, crop=min(image_shape[:2]), cutout=0)
    return CornerViews(model, crop=distort.crop, pad=distort.pad), whole


class CornerViews(nn.Module):
    """A network's probabilities averaged over ten crops: the corners, the centre, and their mirror images.

    Pictures [N, C, H, W] are padded by `pad` with their reflected border, as in training. The answer is the logarithm
    of the mean probability, which serves as logits. Source: cuda-convnet's multi-view test.
    """

    def __init__(self, model: nn.Module, *, crop: int, pad: int) -> None:
        super().__init__()
        self.model, self.crop, self.pad = model, crop, pad

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return float32 logits [N, classes]; images are standardized as the network's input but whole."""
        # Not `F.pad`, which refuses a border as wide as the picture: here, as in training, it is reflected again.
        rows, columns = (
            torch.from_numpy(np.pad(np.arange(side), self.pad, mode="reflect")) for side in images_NCHW.shape[-2:]
        )
        padded = images_NCHW[:, :, rows[:, None], columns] if self.pad else images_NCHW
        bottom, right = (side - self.crop for side in padded.shape[-2:])
        places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
        log_probabilities = [
            _ask(self.model, view).log_softmax(1)
            for top, left in places
            for crop in [padded[..., top : top + self.crop, left : left + self.crop]]
            for view in (crop, crop.flip(3))
        ]
        return torch.stack(log_probabilities).logsumexp(0)


class ViewAverage(nn.Module):
    """A network whose logits are averaged over views of each picture.

    The picture and its mirror image weigh the same. With `moved`, that pair has half of the weight; the other half is
    shared by the two pairs that are moved by one pixel, up left and down right, the border being reflected
    (KellerJordan/cifar10-airbench).
    """

    def __init__(self, model: nn.Module, *, moved: bool) -> None:
        super().__init__()
        self.model, self.moved = model, moved

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return float32 logits [N, classes]; images are as for the network itself."""
        ask = functools.partial(_ask, self.model)
        centre = mirrored_mean(ask, images_NCHW)
        if not self.moved:
            return centre
        height, width = images_NCHW.shape[-2:]
        padded = F.pad(images_NCHW, (1, 1, 1, 1), mode="reflect")
        moved = [mirrored_mean(ask, padded[..., start : start + height, start : start + width]) for start in (0, 2)]
        return 0.5 * centre + 0.25 * (moved[0] + moved[1])


def _ask(model: nn.Module, images_NCHW: Tensor) -> Tensor:
    logits: Tensor = model(images_NCHW.contiguous(memory_format=torch.channels_last))
    return logits.float()


def mirrored_mean(ask: Callable[[Tensor], Tensor], images_NCHW: Tensor) -> Tensor:
    """Return the mean answer to pictures and their mirror images."""
    return 0.5 * (ask(images_NCHW) + ask(images_NCHW.flip(3)))
