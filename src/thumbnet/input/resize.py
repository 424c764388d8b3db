"""Pictures made smaller on their way from the input to the network."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from thumbnet.input.pipeline import Batch


def shrink(batch: Batch, side: int) -> Batch:
    """Return the batch with pictures of side x side pixels, itself where they are that large already.

    A pixel becomes the mean of those that it stands for, weighted by their nearness (bilinear, antialiased), each
    picture for itself: how a batch is cut into shares does not matter.

    Args:
        batch: images float32 [B, C, crop, crop].
        side: at most crop.
    """
    if batch.images.shape[-1] == side:
        return batch
    images = F.interpolate(batch.images, size=(side, side), mode="bilinear", antialias=True)
    return dataclasses.replace(batch, images=images.contiguous(memory_format=torch.channels_last))
