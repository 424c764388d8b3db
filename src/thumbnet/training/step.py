"""One training step: forward, loss, backward, check, update, average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.engine import Precision
from thumbnet.input.pipeline import Batch
from thumbnet.monitor.health import check_finite
from thumbnet.training.averages import WeightAverage


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves behind for the record."""

    loss: float
    """Mean cross-entropy of the batch, without weight decay."""
    accuracy: float
    """Share of the batch that the network had right before the update, 0 to 1."""
    gradient_norm: float
    """Euclidean norm of the gradient of the cross-entropy over all weights."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    batch: Batch,
    *,
    step: int,
    precision: Precision,
) -> StepResult:
    """Train on one batch; `step` counts from 0.

    Raises:
        DivergedError: the loss or a gradient is not finite; weights, optimizer and average are as before.
    """
    with precision.autocast():
        logits_BK: Tensor = model(batch.images)
    logits_BK = logits_BK.float()
    loss = F.cross_entropy(logits_BK, batch.labels)
    optimizer.zero_grad(set_to_none=True)
    (loss * precision.loss_scale).backward()
    if precision.loss_scale != 1:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / precision.loss_scale)
    # Reading the loss waits for the device: the one host synchronisation of a step.
    gradient_norm = check_finite(step, loss, model)
    optimizer.step()
    if average is not None:
        average.update(step)
    accuracy = (logits_BK.detach().argmax(1) == batch.labels).float().mean()
    return StepResult(loss=loss.item(), accuracy=accuracy.item(), gradient_norm=gradient_norm)
