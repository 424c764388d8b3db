"""A trained network with all that stands between a picture and its answer, as one module of plain operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.config import DistortConfig
from thumbnet.input.distort import DATASET_MEAN, DATASET_STD, centre


class PictureNet(nn.Module):
    """Pictures uint8 [N, H, W, C] to probabilities float32 [N, classes]: what an evaluation does to a single view.

    The central crop, or zeros around a smaller picture, and the standardization are those of `input.distort.prepare`;
    here they are operations on tensors, so that they go with the network wherever it goes.
    """

    def __init__(self, network: nn.Module, distort: DistortConfig, image_shape: tuple[int, int, int]) -> None:
        """Put a network behind its preprocessing.

        Args:
            network: from [N, C, crop, crop] to logits.
            distort: size and standardization of its input.
            image_shape: height, width and channels of the pictures.
        """
        super().__init__()
        self.network, self.distort, self.image_shape = network, distort, image_shape

    def forward(self, pictures_NHWC: Tensor) -> Tensor:
        """Return the probability of each class."""
        height, width, _ = self.image_shape
        crop = self.distort.crop
        (rows, rows_to), (columns, columns_to) = centre(height, crop), centre(width, crop)
        border = (columns_to.start, crop - columns_to.stop, rows_to.start, crop - rows_to.stop)
        crops_NCHW = pictures_NHWC.permute(0, 3, 1, 2)[:, :, rows, columns].float()
        logits_NC = self.network(self._standardize(F.pad(crops_NCHW, border)))
        return F.softmax(logits_NC.float(), dim=1)

    def _standardize(self, images_NCHW: Tensor) -> Tensor:
        if self.distort.standardize == "image":
            # Around a whole number first: nothing is left to cancel where a flat picture has a tiny deviation.
            level = images_NCHW.mean(dim=(1, 2, 3), keepdim=True).round()
            images_NCHW = images_NCHW - level
            images_NCHW = images_NCHW - images_NCHW.mean(dim=(1, 2, 3), keepdim=True)
            deviation = images_NCHW.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            return images_NCHW / deviation.clamp_min(images_NCHW[0].numel() ** -0.5)
        images_NCHW = images_NCHW - 255 * torch.tensor(DATASET_MEAN).view(1, -1, 1, 1)
        if self.distort.standardize == "dataset":
            images_NCHW = images_NCHW / (255 * torch.tensor(DATASET_STD).view(1, -1, 1, 1))
        return images_NCHW
