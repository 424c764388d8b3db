"""The speed network on AMX matrix units: grid tensors, and the C kernels of speed_net.c as torch functions.

A grid tensor is an ordinary bfloat16 tensor [N, C, H, W] whose memory is [N, H + 1, W + 1, channels] with zeros in the
last row and column of each image and before the first (speed_net.c says why), channels being C rounded up to 32. Any
torch operation may read it; the functions here recognize it, and make a copy of any other tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thumbnet.kernels import load_library
from thumbnet.models.norm_gelu import Layout

# Positions after the last image that kernels may read (speed_net.c), beside a row and a position.
TAIL = 32


@functools.cache
def amx_ready() -> bool:
    """Tell whether the kernels are compiled for AMX, and the system lets this process use it."""
    handle = load_library().handle
    return handle is not None and bool(handle.amx_ready())


def kernels_take(images_NCHW: Tensor) -> bool:
    """Tell whether the kernels can have the work on this tensor: bf16 arithmetic on a processor with AMX."""
    return (
        not torch.compiler.is_compiling()
        and images_NCHW.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and amx_ready()
    )


def stored_channels(channels: int) -> int:
    """Return the channels of a grid in memory: rounded up to 32."""
    return -(-channels // 32) * 32


def empty_grid(images: int, channels: int, height: int, width: int) -> Tensor:
    """Return a grid tensor [images, channels, height, width] whose values, pads included, are not set."""
    strides, offset, values = _layout(images, channels, height, width)
    memory = torch.empty(values, dtype=torch.bfloat16)
    return memory.as_strided((images, channels, height, width), strides, offset)


def to_grid(images_NCHW: Tensor) -> Tensor:
    """Return the tensor as a grid tensor: itself if it is one, else a copy."""
    strides, offset, values = _layout(*images_NCHW.shape)
    # A part of a dense tensor may have strides and margin of a grid, but what follows it is not a grid's tail.
    if (
        images_NCHW.dtype == torch.bfloat16
        and images_NCHW.stride() == strides
        and images_NCHW.storage_offset() == offset
        and images_NCHW.untyped_storage().nbytes() == values * images_NCHW.element_size()
    ):
        return images_NCHW
    grid = empty_grid(*images_NCHW.shape)
    _memory(grid).zero_()
    return grid.copy_(images_NCHW)


def _layout(images: int, channels: int, height: int, width: int) -> tuple[tuple[int, ...], int, int]:
    """Return strides and offset of a grid tensor, and how many values its memory holds."""
    stored, row = stored_channels(channels), width + 1
    area, margin = (height + 1) * row, row + 1
    return (area * stored, 1, row * stored, stored), margin * stored, (images * area + 2 * margin + TAIL) * stored


class _Convolution(torch.autograd.Function):
    """`conv3x3_forward` and `conv3x3_backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pool: bool) -> Tensor:
        x = to_grid(x)
        N, C, H, W = x.shape
        outputs = weight.shape[0]
        ctx.sizes = (N, H, W, stored_channels(C), outputs)
        packed = _pack(weight, transposed=False)
        out = empty_grid(N, outputs, H // 2 if pool else H, W // 2 if pool else W)
        winner = torch.empty(N * out.stride(0), dtype=torch.uint8) if pool else None
        load_library().call("conv3x3_forward", x, packed, out, winner, *ctx.sizes)
        ctx.save_for_backward(x, weight, winner)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, winner = ctx.saved_tensors
        N, H, W, inputs, outputs = ctx.sizes
        wants_input = ctx.needs_input_grad[0]
        input_gradient = empty_grid(N, x.shape[1], H, W) if wants_input else None
        packed = _pack(weight, transposed=True) if wants_input else None
        weight_gradient = torch.empty(outputs, 3, 3, inputs)
        load_library().call(
            "conv3x3_backward",
            to_grid(gradients[0]),
            x,
            winner,
            packed,
            input_gradient,
            weight_gradient,
            *ctx.sizes,
        )
        return input_gradient, weight_gradient[..., : x.shape[1]].permute(0, 3, 1, 2), None


def _pack(weight: Tensor, *, transposed: bool) -> Tensor:
    """Return the weights [C_out, C_in, 3, 3] as the tiles that the kernels read."""
    outputs, inputs = weight.shape[:2]
    packed = torch.empty(9 * outputs * stored_channels(inputs), dtype=torch.bfloat16)
    source = weight.detach().float().contiguous(memory_format=torch.channels_last)
    load_library().call("conv3x3_pack", source, packed, stored_channels(inputs), inputs, outputs, int(transposed))
    return packed


class _Fork(torch.autograd.Function):
    """A grid for two readers; back, their gradients are added where they lie, which autograd would do into a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = to_grid(x)
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        first, second = (to_grid(gradient) for gradient in gradients)
        _memory(first).add_(_memory(second))
        return first


def _memory(grid: Tensor) -> Tensor:
    """Return what a grid tensor holds, pads and all, as one row."""
    offset = grid.storage_offset()
    return grid.as_strided((offset + grid.shape[0] * grid.stride(0),), (1,), 0)


class _Whitening(torch.autograd.Function):
    """`whiten_forward` and `whiten_backward`: fixed weights, a bias that may learn."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        images_NHWC = images.detach().float().contiguous(memory_format=torch.channels_last)
        tiles, padded_bias = _whitening_tiles(weight), torch.zeros(32)
        padded_bias[: len(bias)] = bias.detach()
        N, _, H, W = images.shape
        out = empty_grid(N, len(bias), H - 1, W - 1)
        load_library().call("whiten_forward", images_NHWC, tiles, padded_bias, out, N, H - 1, W - 1)
        ctx.save_for_backward(images_NHWC, tiles, padded_bias)
        ctx.filters = len(bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images_NHWC, tiles, padded_bias = ctx.saved_tensors
        N, _, H, W = images_NHWC.shape
        sums = torch.empty(32, dtype=torch.float64)
        load_library().call(
            "whiten_backward", images_NHWC, tiles, padded_bias, to_grid(gradients[0]), sums, N, H - 1, W - 1
        )
        return None, None, sums[: ctx.filters].float()


def _whitening_tiles(weight: Tensor) -> Tensor:
    """Return at most 32 filters [F, 3, 2, 2] as tiles: upper bfloat16 parts of filters 0-15, of 16-31, then lower.

    The kernel's 32 inputs are the 12 values of a patch in the order row, column, channel, their remainders after
    rounding to bfloat16, and zeros. Values times upper weights, remainders times upper weights and values times lower
    weights leave out only the product of the two remainders.
    """
    filters = torch.zeros(32, 12)
    filters[: len(weight)] = weight.detach().permute(0, 2, 3, 1).flatten(1)
    upper = filters.bfloat16()
    lower = (filters - upper.float()).bfloat16()
    nothing = torch.zeros(32, 8, dtype=torch.bfloat16)
    parts = torch.stack([torch.cat([upper, upper, nothing], 1), torch.cat([lower, 0 * lower, nothing], 1)])
    # [part, half, 16 outputs, 16 pairs, 2] -> [part, half, 16 pairs, 16 outputs, 2]
    return parts.reshape(2, 2, 16, 16, 2).transpose(2, 3).contiguous()


LAYOUT = Layout(of=to_grid, empty=empty_grid)
convolve: Callable[..., Tensor] = _Convolution.apply
fork: Callable[[Tensor], tuple[Tensor, Tensor]] = _Fork.apply
whiten: Callable[..., Tensor] = _Whitening.apply
