"""Convolutions and whitening in float32 on any processor: winograd.c and norm_gelu.c as torch functions.

Tensors are [N, C, H, W], float32, channels-last in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from thumbnet.kernels import load_library
from thumbnet.models.norm_gelu import Layout

INPUTS_STEP, OUTPUTS_STEP = 8, 32
"""Channels that the kernels take are multiples of these."""
PATCHES = {3: (6, 8), 5: (8,)}
"""Side of a filter -> sides that patches of the input may have, see winograd.c."""


def kernels_take(images_NCHW: Tensor) -> bool:
    """Tell whether the kernels can have the work on this tensor: float32 arithmetic, and a compiler was there."""
    return (
        not torch.compiler.is_compiling()
        and images_NCHW.device.type == "cpu"
        and images_NCHW.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and load_library().handle is not None
    )


def kernels_convolve(images_NCHW: Tensor, layer: nn.Conv2d) -> bool:
    """Tell whether the kernels can have this convolution, which is padded so that sides stay, and may be pooled 2x2."""
    return (
        layer.in_channels % INPUTS_STEP == 0
        and layer.out_channels % OUTPUTS_STEP == 0
        and layer.kernel_size[0] in PATCHES
        and images_NCHW.ndim == 4
        and min(images_NCHW.shape[2:]) >= 2
        and fits(images_NCHW, layer.weight)
        and kernels_take(images_NCHW)
    )


def fits(images_NCHW: Tensor, weight: Tensor) -> bool:
    """Tell whether images have the channels, device and type of a convolution's weight; else torch says so."""
    return (
        images_NCHW.shape[1] == weight.shape[1]
        and images_NCHW.device == weight.device
        and images_NCHW.dtype == weight.dtype
    )


def to_dense(images_NCHW: Tensor) -> Tensor:
    """Return the tensor in float32, channels-last."""
    return images_NCHW.float().contiguous(memory_format=torch.channels_last)


def empty_dense(*sizes: int) -> Tensor:
    """Return a tensor of the sizes N, C, H, W whose values are not set."""
    return torch.empty(sizes, dtype=torch.float32, memory_format=torch.channels_last)


def patch_side(height: int, width: int, side: int, *, pool: bool) -> int:
    """Return the side of patches with the fewest products: larger ones share more, small pictures do not fill them.

    Args:
        height: of the pictures.
        width: of the pictures.
        side: of the filters.
        pool: whether the result is pooled, so that only what is under a 2x2 window is wanted.
    """
    wanted = [length // 2 * 2 if pool else length for length in (height, width)]

    def products(patch: int) -> int:
        return patch**2 * math.prod(-(-length // (patch - side + 1)) for length in wanted)

    return min(PATCHES[side], key=products)


class _Convolution(torch.autograd.Function):
    """`winograd_forward` and `winograd_backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pool: bool) -> Tensor:
        assert bias is None or not pool
        x = to_dense(x)
        N, C, H, W = x.shape
        outputs, _, side, _ = weight.shape
        ctx.sizes = (N, H, W, C, outputs, side, patch_side(H, W, side, pool=pool))
        out = empty_dense(N, outputs, H // 2 if pool else H, W // 2 if pool else W)
        winner = torch.empty(out.numel(), dtype=torch.uint8) if pool else None
        packed = _pack(weight, ctx.sizes[-1], transposed=False)
        load_library().call("winograd_forward", x, packed, bias, out, winner, *ctx.sizes)
        ctx.save_for_backward(x, weight, winner)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, winner = ctx.saved_tensors
        outputs, inputs, side, _ = weight.shape
        wants_input, _, wants_bias, _ = ctx.needs_input_grad
        input_gradient = torch.empty_like(x) if wants_input else None
        packed = _pack(weight, ctx.sizes[-1], transposed=True) if wants_input else None
        weight_gradient = torch.empty(side, side, inputs, outputs, dtype=torch.float32)
        bias_gradient = torch.empty(outputs, dtype=torch.float32) if wants_bias else None
        load_library().call(
            "winograd_backward",
            to_dense(gradients[0]),
            x,
            *(winner, packed, input_gradient, weight_gradient, bias_gradient),
            *ctx.sizes,
        )
        return input_gradient, weight_gradient.permute(3, 2, 0, 1), bias_gradient, None


def _pack(weight: Tensor, patch: int, *, transposed: bool) -> Tensor:
    """Return the weights [C_out, C_in, k, k] transformed for patches of that side, as the kernels read them."""
    outputs, inputs, side, _ = weight.shape
    stored = -(-inputs // OUTPUTS_STEP) * OUTPUTS_STEP if transposed else inputs
    packed = torch.empty(patch**2 * outputs * stored, dtype=torch.float32)
    sizes = (inputs, outputs, side, patch, int(transposed))
    load_library().call("winograd_pack", to_dense(weight.detach()), packed, *sizes)
    return packed


class _Whitening(torch.autograd.Function):
    """`whiten_dense_forward` and `whiten_dense_backward`: fixed weights, a bias that may learn."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        images, columns = to_dense(images.detach()), weight.detach().permute(2, 3, 1, 0).contiguous()
        N, C, H, W = images.shape
        ctx.sizes = (N, H - 1, W - 1, C, len(bias))
        out = empty_dense(N, len(bias), H - 1, W - 1)
        load_library().call("whiten_dense_forward", images, columns, bias.detach(), out, *ctx.sizes)
        ctx.save_for_backward(images, columns, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, columns, bias = ctx.saved_tensors
        sums = torch.empty(len(bias), dtype=torch.float64)
        gradient = to_dense(gradients[0])
        load_library().call("whiten_dense_backward", images, columns, bias, gradient, sums, *ctx.sizes)
        return None, None, sums.float()


LAYOUT = Layout(of=to_dense, empty=empty_dense)
convolve: Callable[[Tensor, Tensor, Tensor | None, bool], Tensor] = _Convolution.apply
"""Convolution of x [N, C_in, H, W] with weight [C_out, C_in, k, k], plus bias [C_out] if any, or pooled 2x2."""
whiten: Callable[[Tensor, Tensor, Tensor], Tensor] = _Whitening.apply
"""GELU of the 2x2 convolution of images [N, C, H, W] with weight [8 n, C, 2, 2] plus bias, without padding."""
