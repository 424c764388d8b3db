"""Test-time views: a network is asked about a picture, its mirror image, and both moved by a pixel.

The figure over views stands beside the single-view one, never in its place: it costs two or six passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Views = Literal["one", "mirror", "shifts"]


class ViewAverage(nn.Module):
    """A network whose logits are averaged over views of each picture.

    `mirror`: the picture and its mirror image weigh the same. `shifts`: that pair has half of the weight; the other
    half is shared by the two pairs that are moved by one pixel, up left and down right, the border being reflected
    (KellerJordan/cifar10-airbench).
    """

    def __init__(self, model: nn.Module, views: Views) -> None:
        super().__init__()
        self.model, self.views = model, views

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return float32 logits [N, classes]; images are as for the network itself."""
        if self.views == "one":
            return self._ask(images_NCHW)
        centre = mirrored_mean(self._ask, images_NCHW)
        if self.views == "mirror":
            return centre
        height, width = images_NCHW.shape[-2:]
        padded = F.pad(images_NCHW, (1, 1, 1, 1), mode="reflect")
        moved = [
            mirrored_mean(self._ask, padded[..., start : start + height, start : start + width]) for start in (0, 2)
        ]
        return 0.5 * centre + 0.25 * (moved[0] + moved[1])

    def _ask(self, images_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.model(images_NCHW.contiguous(memory_format=torch.channels_last))
        return logits.float()


def mirrored_mean(ask: Callable[[Tensor], Tensor], images_NCHW: Tensor) -> Tensor:
    """Return the mean answer to pictures and their mirror images."""
    return 0.5 * (ask(images_NCHW) + ask(images_NCHW.flip(3)))
