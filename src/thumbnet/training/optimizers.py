"""From a recipe's optimizer section to what moves the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from thumbnet.config import OptimizerConfig
from thumbnet.errors import UsageError, did_you_mean


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, products: torch.dtype = torch.float32
) -> GradientDescent:
    """Build the optimizer over all weights, one parameter group for each way of moving.

    The gradient of c/2 * ||w||^2 is c * w, which is what the groups' `weight_decay` adds: the loss term itself is only
    computed for display (`decay_terms`).

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
    return GradientDescent(described, momentum=config.momentum, nesterov=config.nesterov)


def set_rates(optimizer: GradientDescent, *, factor: float, progress: float) -> None:
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


class GradientDescent:
    """Gradient descent with momentum: `torch.optim.SGD` to the bit, whose functional form does the arithmetic.

    Every `torch.optim.Optimizer` imports the tracer of torch.compile, to keep it away from its steps: a third of all
    that a training imports, for steps that nobody compiles.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool) -> None:
        """Take over the groups.

        Args:
            groups: `params`, a list of weights, their `weight_decay` and the present `lr`.
            momentum: share of the last update kept, 0 to below 1.
            nesterov: Nesterov's form of momentum.
        """
        self.param_groups = groups
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        """Of each weight: its `momentum_buffer`, after the first step with momentum."""
        self.momentum = momentum
        self.nesterov = nesterov

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights that have a gradient."""
        for group in self.param_groups:
            self._move(group)

    def _move(self, group: dict[str, Any]) -> None:
        """Move the weights of a group."""
        moving = [parameter for parameter in group["params"] if parameter.grad is not None]
        buffers = [self.state[parameter].get("momentum_buffer") for parameter in moving]
        sgd(
            moving,
            [parameter.grad for parameter in moving],
            buffers,
            foreach=True,
            weight_decay=group["weight_decay"],
            momentum=self.momentum,
            lr=group["lr"],
            dampening=0,
            nesterov=self.nesterov,
            maximize=False,
        )
        for parameter, buffer in zip(moving, buffers, strict=True):
            if buffer is not None:
                self.state[parameter]["momentum_buffer"] = buffer


class Muon(GradientDescent):
    """Orthogonalized gradients with Nesterov momentum for groups marked `muon`, Nesterov's gradient descent for others.

    A convolution's weight is a matrix of C_out rows. Before each step it is scaled to the norm sqrt(C_out), so that the
    learning rate means the same for all of them. Source: KellerJordan/cifar10-airbench, airbench94_muon.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, muon_momentum: float, products: torch.dtype
    ) -> None:
        """Take over the groups.

        Args:
            groups: as in `GradientDescent`, and whether they are `muon`.
            momentum: of the others.
            muon_momentum: of those that are.
            products: type of numbers in which matrices are multiplied.
        """
        super().__init__(groups, momentum=momentum, nesterov=momentum > 0)
        self.muon_momentum = muon_momentum
        self.products = products

    def _move(self, group: dict[str, Any]) -> None:
        """Move the weights of a group."""
        if not group["muon"]:
            super()._move(group)
            return
        for parameter in group["params"]:
            if parameter.grad is not None:
                self._turn(parameter, group["lr"])

    def _turn(self, parameter: Tensor, rate: float) -> None:
        """Move one convolution's weight."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        assert parameter.grad is not None
        buffer.mul_(self.muon_momentum).add_(parameter.grad)
        gradient = parameter.grad.add(buffer, alpha=self.muon_momentum)
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        update = orthogonalize(gradient.permute(0, 2, 3, 1).flatten(1).to(self.products)).to(gradient.dtype)
        C, I, height, width = parameter.shape  # noqa: E741
        update = update.reshape(C, height, width, I).permute(0, 3, 1, 2)
        parameter.add_(update, alpha=-rate)


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
