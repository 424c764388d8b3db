"""Whether a training step may be applied: finite loss, gradients and running statistics; and whether its loss spiked.

On a processor the figures of a step are looked at before its update. An accelerator would have to be waited for every
time: there they stay on the device until something is to be told or saved, and if one of them then is not finite, the
training goes back to the state in which all figures had last been looked at. Either way no weights are saved, validated
or tested that such a step has touched.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thumbnet.errors import DivergedError


class GradientCheck:
    """Checks each step's loss and gradients in one pass over the gradients, before the update is applied.

    A norm is NaN or infinite if any value under it is, so one fused norm answers for every gradient, and the norm is of
    use itself. Only when it is not finite are the gradients looked at one by one, to name the culprit.

    Batch normalization moves its running statistics in the forward pass, before anything is known of the step: they are
    remembered, and put back where the step is refused.
    """

    def __init__(self, model: nn.Module) -> None:
        self._named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._statistics = batch_statistics(model)
        # An accelerator's step is not refused: later, all of the state goes back to what it was before.
        self._buffers = [buffer for buffer in model.buffers() if buffer.device.type == "cpu"]
        self._former = [buffer.clone() for buffer in self._buffers]

    def remember(self) -> None:
        """Remember what the forward pass is going to move; call it before."""
        if self._buffers:
            torch._foreach_copy_(self._former, self._buffers)

    def measure(self, loss: Tensor, accuracy: Tensor) -> Tensor:
        """Return loss, accuracy and gradient norm of a step whose backward has run, float32 [3], where the network is.

        The norm is NaN where a running statistic is not finite.

        Args:
            loss: the loss, a scalar tensor.
            accuracy: the accuracy, likewise.
        """
        gradients = [parameter.grad for _, parameter in self._named if parameter.grad is not None]
        loss = loss.detach().float()
        norm = torch.stack(torch._foreach_norm(gradients)).float() if gradients else loss.new_zeros(1)
        total = torch.linalg.vector_norm(norm)
        if self._statistics:
            # Nothing is added where all is finite: 0 times infinity, like 0 times NaN, is NaN.
            total = total + 0 * torch.stack(torch._foreach_norm(list(self._statistics.values()), math.inf)).sum()
        return torch.stack([loss, accuracy, total])

    def check(self, step: int, figures: Tensor) -> None:
        """Refuse a step whose figures are not finite; call it before the update, which it waits for.

        Args:
            step: number of the step, from 1 as step lines count them, for the message.
            figures: from `measure`; a norm that overflowed is put right.

        Raises:
            DivergedError: the loss, a gradient or a running statistic is not finite. Weights and statistics are as they
                were before the step.
        """
        loss, _, norm = figures.tolist()
        try:
            if not math.isfinite(loss):
                raise DivergedError(_message(step, f"loss = {_spell(loss)}"))
            if not math.isfinite(norm):
                figures[2] = self._exact_norm(step, loss)
        except DivergedError:
            for buffer, former in zip(self._buffers, self._former, strict=True):
                buffer.copy_(former)
            raise

    def _exact_norm(self, step: int, loss: float) -> float:
        """Name the first value that is not finite; when all are, the norm overflowed: return it from float64."""
        squares = 0.0
        for name, parameter in self._named:
            if parameter.grad is None:
                continue
            bad = parameter.grad.numel() - int(torch.isfinite(parameter.grad).sum())
            if bad:
                what = f"{bad:,} of {parameter.grad.numel():,} values of the gradient of {name} not finite"
                raise DivergedError(_message(step, f"{what} (loss = {loss:.4g})"))
            squares += float(parameter.grad.double().square().sum())
        for name, statistic in self._statistics.items():
            if not bool(torch.isfinite(statistic).all()):
                raise DivergedError(_message(step, f"{name} of batch normalization not finite (loss = {loss:.4g})"))
        return math.sqrt(squares)


def batch_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of batch normalization by name; empty for a network without."""
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    }


def check_late(step: int, loss: float, norm: float, kept_step: int) -> None:
    """Refuse a step whose figures are read after its update.

    Args:
        step: number of the step, from 1.
        loss: its loss.
        norm: its gradient norm; one that overflows float32 counts as not finite here.
        kept_step: where the training can go back to.

    Raises:
        DivergedError: one of them is not finite.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        norms = "norm of gradient or running statistics"
        figure = f"{norms} = {_spell(norm)}" if math.isfinite(loss) else f"loss = {_spell(loss)}"
        raise DivergedError(
            _message(step, figure, f"the weights are again those of step {kept_step}, the last one looked at")
        )


def _message(
    step: int, what: str, then: str = "the update was not applied, the weights are those of the step before"
) -> str:
    return f"step {step}: Model diverged with {what}\n{then}; a lower learning rate usually helps"


def _spell(value: float) -> str:
    """Spell a value that is not finite as the tutorial does."""
    return "NaN" if math.isnan(value) else f"{value}"


class SpikeDetector:
    """Notices losses that are finite and yet out of the ordinary.

    A spike is a loss above `factor` times the smoothed loss that also lies ten deviations above it: with batches of a
    single picture, losses several times their mean are ordinary.
    """

    def __init__(self, *, factor: float = 3.0, decay: float = 0.98, warmup_steps: int = 50) -> None:
        self._factor, self._decay, self._warmup = factor, decay, warmup_steps
        self._count = 0
        self._mean = 0.0
        self._variance = 0.0
        self._in_spike = False

    def update(self, step: int, loss: float) -> str | None:
        """Take in a step's loss; return a line for the log when a spike begins, else None."""
        deviation = math.sqrt(self._variance)
        limit = max(self._factor * self._mean, self._mean + 10 * deviation)
        spike = self._count >= self._warmup and loss > limit
        begins = spike and not self._in_spike
        self._in_spike = spike
        mean = self._mean
        # Winsorized: one spike must not raise the bar for the next.
        self._follow(min(loss, limit) if self._count >= self._warmup else loss)
        return f"step {step}: loss spiked to {loss:.4g}, recent mean {mean:.4g}" if begins else None

    def _follow(self, loss: float) -> None:
        """Move mean and variance; the first steps weigh equally, so that the start is not a bias."""
        self._count += 1
        share = max(1 - self._decay, 1 / self._count)
        difference = loss - self._mean
        self._mean += share * difference
        self._variance = (1 - share) * (self._variance + share * difference * difference)
