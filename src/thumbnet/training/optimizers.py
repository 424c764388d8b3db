"""From a recipe's optimizer section to a torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thumbnet.config import OptimizerConfig
from thumbnet.errors import UsageError, did_you_mean


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, products: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """Build the optimizer over all weights, one parameter group for each way of moving.

    The gradient of c/2 * ||w||^2 is c * w, which is what the optimizers' `weight_decay` adds: the loss term itself is
    only computed for display (`decay_terms`).

    Args:
        model: what is trained.
        config: the recipe's optimizer section.
        products: type of numbers in which this machine multiplies matrices fast, for Muon's iterations.

    Raises:
        UsageError: the recipe names a layer that the network does not have, or lets Muon's convolutions decay.
    """
    _check_layers(model, config.weight_decay, "weight_decay", also=("default", "biases"))
    _check_layers(model, config.rates, "rates", also=("biases",))
    _check_layers(model, config.freeze_after, "freeze_after")
    groups: dict[tuple[float, float, float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        decay = decay_of(name, parameter, config.weight_decay)
        until = config.freeze_after.get(name.rpartition(".")[0], 1.0)
        muon = config.name == "muon" and parameter.ndim == 4
        if muon and decay:
            raise UsageError(
                f"optimizer.weight_decay of {name.rpartition('.')[0]} is {decay:g}: in muon, convolutions keep their "
                "norm and cannot decay\ngive a decay to other layers by their names, or take optimizer.name=sgd"
            )
        groups.setdefault((decay, _rate_of(name, parameter, config), until, muon), []).append(parameter)
    described = [
        {"params": parameters, "weight_decay": decay, "lr": rate, "peak_lr": rate, "until": until, "muon": muon}
        for (decay, rate, until, muon), parameters in groups.items()
    ]
    if config.name == "muon":
        return Muon(described, momentum=config.momentum, muon_momentum=config.muon_momentum, products=products)
    return torch.optim.SGD(
        described, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, foreach=True
    )


def set_rates(optimizer: torch.optim.Optimizer, *, factor: float, progress: float) -> None:
    """Set every group's learning rate for the next step, and stop the gradients of layers that no longer learn.

    Args:
        optimizer: from `build_optimizer`.
        factor: that of the schedule.
        progress: share of the training that is done, 0 to 1.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        learns = progress < group["until"] or group["until"] == 1
        for parameter in group["params"]:
            parameter.requires_grad_(learns)


def _rate_of(name: str, parameter: Tensor, config: OptimizerConfig) -> float:
    """Return a parameter's peak learning rate."""
    layer = name.rpartition(".")[0]
    if layer in config.rates:
        return config.rates[layer]
    return config.rates.get("biases", config.learning_rate) if parameter.ndim == 1 else config.learning_rate


class Muon(torch.optim.SGD):
    """Orthogonalized gradients with Nesterov momentum for groups marked `muon`, Nesterov's gradient descent for others.

    A convolution's weight is a matrix of C_out rows. Before each step it is scaled to the norm sqrt(C_out), so that the
    learning rate means the same for all of them. Source: KellerJordan/cifar10-airbench, airbench94_muon.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, muon_momentum: float, products: torch.dtype
    ) -> None:
        super().__init__(groups, momentum=momentum, nesterov=momentum > 0, foreach=True)
        self.products = products
        for group in self.param_groups:
            if group["muon"]:
                group["momentum"] = muon_momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; `closure` is not supported."""
        assert closure is None
        every = self.param_groups
        for group in every:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._turn(parameter, group)
        # The other groups move as SGD moves them.
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = every

    def _turn(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Move one convolution's weight."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        assert parameter.grad is not None
        buffer.mul_(group["momentum"]).add_(parameter.grad)
        gradient = parameter.grad.add(buffer, alpha=group["momentum"])
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        update = orthogonalize(gradient.permute(0, 2, 3, 1).flatten(1).to(self.products)).to(gradient.dtype)
        C, I, height, width = parameter.shape  # noqa: E741
        update = update.reshape(C, height, width, I).permute(0, 3, 1, 2)
        parameter.add_(update, alpha=-group["lr"])


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return roughly the orthogonal matrix nearest to a matrix: its singular values come near 1.

    Newton-Schulz iterations X <- a X + (b A + c A^2) X with A = X X^T, in the matrix's own type of numbers; bfloat16
    will do. The coefficients give the largest slope at 0 rather than convergence. Source: Jordan's Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = len(matrix) > matrix.shape[1]
    x = matrix / (matrix.norm() + 1e-7)
    if tall:
        x = x.T
    for _ in range(steps):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    result: Tensor = x.T if tall else x
    return result


def _check_layers(model: nn.Module, names: Iterable[str], key: str, also: Iterable[str] = ()) -> None:
    """Raise `UsageError` when `optimizer.<key>` names neither a layer of the network nor one of the words in `also`."""
    known = {name.rpartition(".")[0] for name, _ in model.named_parameters()} | set(also)
    for name in names:
        if name not in known:
            raise UsageError(f"optimizer.{key}.{name}: no such layer{did_you_mean(name, known)}")


def decay_of(name: str, parameter: Tensor, weight_decay: Mapping[str, float]) -> float:
    """Return a parameter's coefficient: weights (two dimensions or more) decay, biases only as `biases` says."""
    if parameter.ndim < 2:
        return weight_decay.get("biases", 0.0)
    return weight_decay.get(name.rpartition(".")[0], weight_decay.get("default", 0.0))


def decay_terms(model: nn.Module, weight_decay: Mapping[str, float]) -> dict[str, Tensor]:
    """Return c/2 * ||w||^2 of each decayed layer, by layer name: what weight decay adds to the loss."""
    terms: dict[str, Tensor] = {}
    if not weight_decay:
        return terms  # walking through a network takes longer than a step may
    for name, parameter in model.named_parameters():
        if decay := decay_of(name, parameter, weight_decay):
            term = decay / 2 * parameter.detach().square().sum()
            layer = name.rpartition(".")[0]
            terms[layer] = terms[layer] + term if layer in terms else term
    return terms
