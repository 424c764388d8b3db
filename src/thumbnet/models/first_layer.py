"""A network's first convolution, ReLU and max pool in one pass: the C kernels of conv_pool.c and conv_pool_dense.c.

The former compute in bfloat16 on AMX matrix units, the latter in float32 on any processor. What the convolution makes
is the largest thing in such a network, and nobody but the pool reads it: a picture at a time it never leaves the
processor's cache, forward or back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from thumbnet.kernels import load_library
from thumbnet.models import dense, fused, grid
from thumbnet.models.layers import SameMaxPool

LINE = 16
"""Values of one line of a window that conv_pool.c has room for; longer ones are for neither."""


class PooledFirst(nn.Sequential):
    """Layers one after the other, of which the first two, a convolution and its max pool, run as one where they can.

    Whoever hooks one of the two is shown what it makes by itself; what the others get does not depend on that.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Apply the layers."""
        layers, output = list(self), input
        conv, pool = layers[:2]
        if kernels_take(input, conv, pool):
            if conv._forward_hooks or pool._forward_hooks:
                with torch.no_grad():
                    pool(conv(input))
            compute = conv_pool if grid.kernels_take(input) else conv_pool_dense
            output = compute(input, conv.weight, conv.bias, pool.kernel, pool.stride, pool.relu)
            layers = layers[2:]
        for layer in layers:
            output = layer(output)
        return output


def kernels_take(images_NCHW: Tensor, conv: nn.Module, pool: nn.Module) -> bool:
    """Tell whether the kernels can have these two layers: bf16 on AMX or float32, and a gradient of weights alone."""
    if not (isinstance(conv, nn.Conv2d) and isinstance(pool, SameMaxPool)):
        return False
    if not (grid.kernels_take(images_NCHW) or dense.kernels_take(images_NCHW)):
        return False
    side = conv.kernel_size[0]
    return (
        images_NCHW.dtype == torch.float32
        and images_NCHW.ndim == 4
        and dense.fits(images_NCHW, conv.weight)
        and not images_NCHW.requires_grad
        and conv.bias is not None
        and conv.out_channels % 32 == 0
        and side % 2 == 1
        and side * conv.in_channels <= LINE
        and (conv.kernel_size, conv.stride, conv.dilation) == ((side, side), (1, 1), (1, 1))
        and (conv.padding, conv.padding_mode, conv.groups) == ((side // 2, side // 2), "zeros", 1)
        and pool.kernel <= fused.MAX_KERNEL
    )


class _ConvPool(torch.autograd.Function):
    """`conv_pool_forward` and `conv_pool_backward`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, relu: bool) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
        N, C, H, W = images.shape
        outputs, side = weight.shape[0], weight.shape[2]
        (top, _), (left, _) = fused.same_padding(H, kernel, stride), fused.same_padding(W, kernel, stride)
        out_height, out_width = -(-H // stride), -(-W // stride)
        ctx.sizes = (N, H, W, C, side, outputs, out_height, out_width, kernel, stride, top, left)
        packed = torch.empty(outputs * _depth(side), dtype=torch.bfloat16)
        load_library().call("conv_pool_pack", weight, bias, packed, side, C, outputs)
        out = torch.empty(N, out_height, out_width, outputs, dtype=torch.bfloat16)
        winner = torch.empty(out.shape, dtype=torch.uint8)
        load_library().call("conv_pool_forward", images, packed, out, winner, *ctx.sizes, int(relu))
        ctx.save_for_backward(images, winner)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, winner = ctx.saved_tensors
        channels, side, outputs = ctx.sizes[3:6]
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        sums = torch.empty(outputs, _depth(side))
        load_library().call("conv_pool_backward", gradient, winner, images, sums, *ctx.sizes)
        lines = sums[:, : side * LINE].view(outputs, side, LINE)[..., : side * channels]
        weight_gradient = lines.reshape(outputs, side, side, channels).permute(0, 3, 1, 2)
        return None, weight_gradient, sums[:, side * LINE].contiguous(), None, None, None


class _ConvPoolDense(torch.autograd.Function):
    """`conv_pool_dense_forward` and `conv_pool_dense_backward`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, relu: bool) -> Tensor:
        images = dense.to_dense(images)
        N, C, H, W = images.shape
        outputs, side = weight.shape[0], weight.shape[2]
        (top, _), (left, _) = fused.same_padding(H, kernel, stride), fused.same_padding(W, kernel, stride)
        out_height, out_width = -(-H // stride), -(-W // stride)
        ctx.sizes = (N, H, W, C, side, outputs, out_height, out_width, kernel, stride, top, left)
        filters = torch.cat([weight.detach().permute(2, 3, 1, 0).reshape(-1, outputs), bias.detach()[None]])
        out = dense.empty_dense(N, outputs, out_height, out_width)
        winner = torch.empty(out.numel(), dtype=torch.uint8)
        load_library().call("conv_pool_dense_forward", images, filters, out, winner, *ctx.sizes, int(relu))
        ctx.save_for_backward(images, winner)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, winner = ctx.saved_tensors
        channels, side, outputs = ctx.sizes[3:6]
        sums = torch.empty(side * side * channels + 1, outputs, dtype=torch.float32)
        gradient = dense.to_dense(gradients[0])
        load_library().call("conv_pool_dense_backward", gradient, winner, images, sums, *ctx.sizes)
        weight_gradient = sums[:-1].view(side, side, channels, outputs).permute(3, 2, 0, 1)
        return None, weight_gradient, sums[-1].clone(), None, None, None


def _depth(side: int) -> int:
    """Return the depth of the convolution as a matrix product: its lines and the biases, in whole tiles."""
    return -(-(side * LINE + 1) // 32) * 32


conv_pool: Callable[..., Tensor] = _ConvPool.apply
"""Max pool of a convolution: images float32 [N, C, H, W], weight [O, C, k, k], bias [O], window, stride, ReLU."""
conv_pool_dense: Callable[..., Tensor] = _ConvPoolDense.apply
"""The same, of the same arguments, in float32."""
