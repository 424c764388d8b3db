"""Pooling, response normalization and patches as torch functions over the C kernels of pool_norm.c.

Tensors are [N, C, H, W], channels-last in memory, float32 or bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thumbnet.kernels import load_library

# Limits of the C kernels (MAX_CHANNELS, MAX_RADIUS of pool_norm.c).
MAX_CHANNELS, MAX_RADIUS = 1024, 16
MAX_KERNEL = 15
"""Max pooling keeps in a byte which position of its window won, and 255 is not one."""


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the (before, after) padding of TensorFlow's SAME along one side; the odd pixel goes after."""
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def kernels_take(images_NCHW: Tensor) -> bool:
    """Tell whether the C kernels can have this tensor; none that only stands for others, as in an export."""
    return (
        not torch.compiler.is_compiling()
        and images_NCHW.device.type == "cpu"
        and images_NCHW.dtype in (torch.float32, torch.bfloat16)
        and images_NCHW.shape[1] <= MAX_CHANNELS
        and load_library().handle is not None
    )


class _MaxPool(torch.autograd.Function):
    """The C kernels `max_pool_forward` and `max_pool_backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, relu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        N, C, H, W = x.shape
        (top, _), (left, _) = same_padding(H, kernel, stride), same_padding(W, kernel, stride)
        output = _empty_channels_last(x, (N, C, -(-H // stride), -(-W // stride)))
        winner = _empty_channels_last(x, output.shape, dtype=torch.uint8)
        ctx.geometry = (N, H, W, C, output.shape[2], output.shape[3], kernel, stride, top, left)
        load_library().call("max_pool_forward", x, output, winner, *ctx.geometry, int(relu))
        ctx.save_for_backward(winner)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        (winner,) = ctx.saved_tensors
        N, H, W, C = ctx.geometry[:4]
        input_gradient = _empty_channels_last(gradient, (N, C, H, W))
        load_library().call("max_pool_backward", gradient, winner, input_gradient, *ctx.geometry)
        return input_gradient, None, None, None


class _ResponseNorm(torch.autograd.Function):
    """The C kernels `lrn_forward` and `lrn_backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, radius: int, bias: float, alpha: float, relu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        output = torch.empty_like(x)
        ctx.constants = (x.numel() // x.shape[1], x.shape[1], radius, float(bias), float(alpha), int(relu))
        load_library().call("lrn_forward", x, output, *ctx.constants)
        ctx.save_for_backward(x)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        (x,) = ctx.saved_tensors
        input_gradient = torch.empty_like(x)
        load_library().call("lrn_backward", gradient, x, input_gradient, *ctx.constants)
        return input_gradient, None, None, None, None


class _MapNorm(torch.autograd.Function):
    """The C kernels `map_norm_forward` and `map_norm_backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: int, alpha: float) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        output = torch.empty_like(x)
        N, C, H, W = x.shape
        ctx.constants = (N, H, W, C, reach, float(alpha))
        load_library().call("map_norm_forward", x, output, *ctx.constants)
        ctx.save_for_backward(x)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        (x,) = ctx.saved_tensors
        input_gradient, inner = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
        load_library().call("map_norm_backward", gradient, x, input_gradient, inner, *ctx.constants)
        return input_gradient, None, None


class _Patches(torch.autograd.Function):
    """The C kernels `patches_forward` and `patches_backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reach: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        N, C, H, W = ctx.shape = x.shape
        ctx.reach = reach
        patches = x.new_empty(H * W, N, (2 * reach + 1) ** 2 * C)
        load_library().call("patches_forward", x, patches, N, H, W, C, reach)
        return patches

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        N, C, H, W = ctx.shape
        gradient = gradients[0].contiguous()
        input_gradient = _empty_channels_last(gradient, ctx.shape)
        load_library().call("patches_backward", gradient, input_gradient, N, H, W, C, ctx.reach)
        return input_gradient, None


max_pool: Callable[..., Tensor] = _MaxPool.apply
response_norm: Callable[..., Tensor] = _ResponseNorm.apply
map_norm: Callable[..., Tensor] = _MapNorm.apply
patches: Callable[..., Tensor] = _Patches.apply


def _empty_channels_last(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)
