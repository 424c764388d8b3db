"""One training step: forward, loss, backward, check, update, average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from thumbnet.engine import Precision
from thumbnet.input.pipeline import Batch
from thumbnet.monitor.health import GradientCheck
from thumbnet.training.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves behind for the record."""

    loss: float
    """Mean cross-entropy of the batch, with label smoothing if any, without weight decay."""
    accuracy: float
    """Share of the batch that the network had right before the update, 0 to 1."""
    gradient_norm: float
    """Euclidean norm of the gradient of the cross-entropy over all weights."""


def train_step(
    state: TrainingState,
    batch: Batch,
    *,
    check: GradientCheck,
    precision: Precision,
    label_smoothing: float = 0.0,
    before_update: Callable[[], None] | None = None,
) -> StepResult:
    """Train on one batch and count the step.

    Args:
        state: changed in place.
        batch: images float32 [B, C, h, w], labels int64 [B].
        check: refuses losses and gradients that are not finite.
        precision: arithmetic of forward and backward.
        label_smoothing: share of each target spread evenly over all classes.
        before_update: called when the gradients are there and the weights have not moved yet.

    Raises:
        DivergedError: the loss or a gradient is not finite; the state is as before.
    """
    with precision.autocast():
        logits_BK: Tensor = state.model(batch.images)
    logits_BK = logits_BK.float()
    loss = F.cross_entropy(logits_BK, batch.labels, label_smoothing=label_smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    (loss * precision.loss_scale).backward()
    if precision.loss_scale != 1:
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / precision.loss_scale)
    loss_value, gradient_norm = check.check(state.step, loss)
    if before_update:
        before_update()
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.step)
    state.step += 1
    accuracy = (logits_BK.detach().argmax(1) == batch.labels).float().mean()
    return StepResult(loss=loss_value, accuracy=accuracy.item(), gradient_norm=gradient_norm)
