"""What every network of this package can do beside giving logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classifier(nn.Sequential):
    """Named layers in order: images [N, channels, crop, crop], prepared as for evaluation, to logits [N, classes]."""

    @torch.no_grad()
    def predict(self, images_NCHW: Tensor) -> Tensor:
        """Return the probability of each class, float32 [N, classes], each row summing to 1.

        The network answers as in evaluation, whatever mode it is in; the mode is as before afterwards.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            logits: Tensor = self(images_NCHW)
        finally:
            for module, training in modes:
                module.training = training
        return logits.float().softmax(1)
