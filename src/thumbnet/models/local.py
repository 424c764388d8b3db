"""Locally connected layers on AMX matrix units: the C kernels of local.c as a torch function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thumbnet.kernels import load_library
from thumbnet.models import grid


def kernels_take(images_NCHW: Tensor, weight_PKO: Tensor, kernel: int) -> bool:
    """Tell whether the kernels can have this layer: bf16 arithmetic, float32 weights for this size, by the 32."""
    _, C, H, W = images_NCHW.shape
    return (
        grid.kernels_take(images_NCHW)
        and weight_PKO.dtype == torch.float32
        and weight_PKO.shape[:2] == (H * W, kernel**2 * C)
        and C % 32 == 0
        and weight_PKO.shape[2] % 32 == 0
    )


class _Connect(torch.autograd.Function):
    """`local_product`, forward and back, and `local_weight_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reach: int) -> Tensor:
        ctx.images, C, H, W = x.shape
        x, weight, outputs = _operand(x), weight.contiguous(), weight.shape[2]
        ctx.sizes = (len(x), H, W, C, outputs, reach)
        out = x.new_empty(len(x), H, W, outputs)
        load_library().call("local_product", x, weight, bias.contiguous(), out, *ctx.sizes, 0)
        ctx.save_for_backward(x, weight)
        return out[: ctx.images].permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        N, H, W, C, outputs, _ = ctx.sizes
        gradient = _operand(gradients[0])
        input_gradient = None
        if ctx.needs_input_grad[0]:
            back = x.new_empty(N, H, W, C)
            load_library().call("local_product", gradient, weight, torch.zeros(H * W * C), back, *ctx.sizes, 1)
            input_gradient = back[: ctx.images].permute(0, 3, 1, 2)
        weight_gradient, bias_gradient = torch.empty_like(weight), torch.empty(H * W * outputs)
        load_library().call("local_weight_gradient", gradient, x, weight_gradient, bias_gradient, *ctx.sizes)
        return input_gradient, weight_gradient, bias_gradient, None


connect: Callable[..., Tensor] = _Connect.apply
"""Connect x [N, C, H, W] by weights [positions, kernel^2 C, O] and biases [positions O], within `reach`: bfloat16."""


def _operand(x_NCHW: Tensor) -> Tensor:
    """Return the tensor as the kernels read it: bfloat16, channels-last, images by the 32, of zeros where missing."""
    if len(x_NCHW) % 32:
        x_NCHW = F.pad(x_NCHW, (0, 0, 0, 0, 0, 0, 0, -len(x_NCHW) % 32))
    return x_NCHW.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
