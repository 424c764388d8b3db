"""Batch normalization and GELU in two passes over memory each way: the C kernels `norm_*` as a torch function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thumbnet.kernels import load_library


class Layout(NamedTuple):
    """How tensors lie in the memory that kernels of one kind read and write."""

    of: Callable[[Tensor], Tensor]
    """Returns a tensor [N, C, H, W] that lies so: the one given if it does, else a copy."""
    empty: Callable[..., Tensor]
    """Returns a tensor of the sizes N, C, H, W whose values are not set."""


class _NormGelu(torch.autograd.Function):
    """GELU of a batch-normalized tensor, to which another may be added before."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, bias: Tensor, eps: float, added: Tensor | None, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, added = layout.of(z), None if added is None else layout.of(added)
        N, C, H, W = z.shape
        sums = torch.empty(2, C, dtype=torch.float64)
        load_library().call("norm_sums", z, sums, N, H, W, C)
        mean, square = sums / (N * H * W)
        variance = (square - mean * mean).clamp_min(0)
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(z, mean, scale, bias, added)
        ctx.layout = layout
        ctx.mark_non_differentiable(mean, variance)
        return apply_norm_gelu(z, scale, bias - mean * scale, added, layout), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, mean, scale, bias, added = ctx.saved_tensors
        N, C, H, W = sizes = z.shape
        inner = ctx.layout.empty(*sizes)
        sums = torch.empty(2, C, dtype=torch.float64)
        scale32, shift32 = scale.float(), (bias - mean * scale).float()
        load_library().call(
            "norm_gelu_backward",
            ctx.layout.of(gradients[0]),
            z,
            added,
            inner,
            scale32,
            shift32,
            sums,
            *(N, H, W, C),
        )
        # dz = scale * (inner - mean(inner) - normalized * mean(inner * normalized)), normalized = scale * (z - mean)
        inner_mean, product_mean = sums / (N * H * W)
        slope = -(scale**3) * (product_mean - mean * inner_mean)
        factors = torch.stack([scale, slope, -scale * inner_mean - slope * mean]).float()
        # Without `added`, nobody needs the inner gradient any more, and the outer one takes its place.
        outer = inner if added is None else ctx.layout.empty(*sizes)
        load_library().call("norm_backward", inner, z, outer, factors, N, H, W, C)
        return outer, sums[0].to(bias.dtype), None, None if added is None else inner, None


def apply_norm_gelu(z: Tensor, scale: Tensor, shift: Tensor, added: Tensor | None, layout: Layout) -> Tensor:
    """Return GELU(scale z + shift + added): z and added [N, C, H, W], scale and shift [C]."""
    out = layout.empty(*z.shape)
    load_library().call(
        "norm_gelu_forward",
        layout.of(z),
        None if added is None else layout.of(added),
        out,
        scale.float(),
        shift.float(),
        *(out.shape[i] for i in (0, 2, 3, 1)),
    )
    return out


norm_gelu: Callable[..., tuple[Tensor, Tensor, Tensor]] = _NormGelu.apply
"""GELU of z [N, C, H, W], normalized by its batch, plus bias [C], plus `added` unless None; its mean and variance."""
