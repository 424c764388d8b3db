"""Layers that PyTorch lacks, or does with other semantics.

TensorFlow's SAME max pool, response normalization across channels and within each map, locally connected layers.
On processors pooling and normalization run as one fused C pass each way where the compiled kernels are at hand, else in
plain torch; the two agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.kernels import load_library

# Limits of the C kernels (MAX_CHANNELS, MAX_RADIUS of pool_norm.c).
MAX_CHANNELS, MAX_RADIUS = 1024, 16


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the (before, after) padding of TensorFlow's SAME along one side; the odd pixel goes after."""
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class SameMaxPool(nn.Module):
    """Max pooling with SAME padding: [N, C, H, W] -> [N, C, ceil(H/stride), ceil(W/stride)], ReLU after it on request.

    ReLU and maximum commute; after pooling there is a quarter of the values left to clip.
    """

    def __init__(self, kernel: int, stride: int, *, relu: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.relu = kernel, stride, relu

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Pool over the two last dimensions."""
        if _kernels_take(images_NCHW):
            return _max_pool(images_NCHW, self.kernel, self.stride, self.relu)
        (top, bottom), (left, right) = (same_padding(side, self.kernel, self.stride) for side in images_NCHW.shape[-2:])
        # Padding must never win the maximum.
        padded = F.pad(images_NCHW, (left, right, top, bottom), value=float("-inf"))
        output = F.max_pool2d(padded, self.kernel, self.stride)
        return F.relu(output) if self.relu else output

    def extra_repr(self) -> str:
        """Show window, stride, ReLU."""
        return f"{self.kernel}, stride={self.stride}, relu={self.relu}"


class LocalResponseNorm(nn.Module):
    """Response normalization across channels, as TensorFlow's `lrn` defines it; of max(x, 0) with `relu`.

    y = x / (bias + alpha * sum of x^2 over the channel and `radius` neighbours each side) ^ 0.75, for [N, C, H, W].
    `alpha` multiplies the sum (torch's `local_response_norm` divides its alpha by the window's size).
    """

    def __init__(self, *, radius: int, bias: float, alpha: float, relu: bool = False) -> None:
        super().__init__()
        self.radius, self.bias, self.alpha, self.relu = radius, bias, alpha, relu

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Normalize; the result has the input's type and memory format."""
        if _kernels_take(images_NCHW) and self.radius <= MAX_RADIUS:
            return _response_norm(images_NCHW, self.radius, self.bias, self.alpha, self.relu)
        x = F.relu(images_NCHW) if self.relu else images_NCHW
        # alpha is about 1e-4 and would vanish beside the bias in bf16, so s is float32 whatever the input is.
        s = self.bias + self.alpha * band_sum(x * x, self.radius).float()
        # s^-0.75 as r sqrt(r), r = rsqrt(s), which costs a tenth of a power.
        r = s.rsqrt()
        return (x * (r * r.sqrt())).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"radius={self.radius}, bias={self.bias}, alpha={self.alpha:.3g}, relu={self.relu}"


def patches_by_position(images_NCHW: Tensor, kernel: int) -> Tensor:
    """Return the patch around every position, [H*W, N, kernel^2 * C]; a patch's values are in the order row, column, C.

    Positions come first, so that the patches of one position are the rows of one matrix. Outside of the picture is 0.
    """
    if _kernels_take(images_NCHW):
        return _patches(images_NCHW, kernel // 2)
    N, C, H, W = images_NCHW.shape
    margin, taps = kernel // 2, range(kernel)
    padded_HWNC = F.pad(images_NCHW.permute(2, 3, 0, 1), (0, 0, 0, 0, margin, margin, margin, margin))
    patches = torch.cat([padded_HWNC[y : y + H, x : x + W] for y in taps for x in taps], dim=3)
    return patches.view(H * W, N, kernel**2 * C)


def band_sum(values_NCHW: Tensor, radius: int) -> Tensor:
    """Sum each channel's neighbourhood of `radius` to each side, as one product with a banded matrix of ones.

    The product runs on the machine's matrix units, where padding and pooling take many passes over memory.
    """
    channel = torch.arange(values_NCHW.shape[1], device=values_NCHW.device)
    band_CC = ((channel[:, None] - channel[None, :]).abs() <= radius).to(values_NCHW.dtype)
    return F.conv2d(values_NCHW, band_CC[:, :, None, None])


class MapResponseNorm(nn.Module):
    """Response normalization within each map, as cuda-convnet's `rnorm` defines it.

    y = x / (1 + alpha * sum of x^2 over the `size` x `size` window around the pixel) ^ 0.75, for [N, C, H, W]; outside
    of the picture is 0. cuda-convnet's `scale` is alpha * size^2.
    """

    def __init__(self, *, size: int, alpha: float) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size is {size}: a window around a pixel has an odd size")
        self.size, self.alpha = size, alpha

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Normalize; the result has the input's type."""
        if _kernels_take(images_NCHW):
            return _map_norm(images_NCHW, self.size // 2, self.alpha)
        # alpha is below 1e-5 and would vanish beside 1 in bf16, so s is float32 whatever the input is.
        x = images_NCHW.float()
        window_mean = F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        r = (1 + self.alpha * self.size**2 * window_mean).rsqrt()
        return (x * (r * r.sqrt())).to(images_NCHW.dtype)

    def extra_repr(self) -> str:
        """Show the constants."""
        return f"size={self.size}, alpha={self.alpha:.3g}"


class LocallyConnected(nn.Module):
    """A convolution whose weights are not shared: every position has a filter bank and biases of its own.

    [N, inputs, side, side] -> [N, outputs, side, side]; the border is padded with zeros so that the side stays. All
    positions are one batched matrix product, [positions, N, kernel^2 inputs] x [positions, kernel^2 inputs, outputs].
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, side: int, std: float) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}: only an odd one keeps the side")
        self.kernel, self.side, self.outputs = kernel, side, outputs
        self.weight = nn.Parameter(torch.empty(side * side, kernel * kernel * inputs, outputs))
        """Rows in the order row, column, channel of the patch; with them as columns the gradient costs twice."""
        self.bias = nn.Parameter(torch.zeros(side * side * outputs))
        nn.init.normal_(self.weight, std=std)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Connect; the result is channels-last in memory."""
        N, _, H, W = images_NCHW.shape
        if torch.is_autocast_enabled(images_NCHW.device.type):
            # The product would be in this type; patches are nine times the input, so the input is cast instead.
            images_NCHW = images_NCHW.to(torch.get_autocast_dtype(images_NCHW.device.type))
        patches_PNK = patches_by_position(images_NCHW, self.kernel)
        values_PNO = torch.baddbmm(self.bias.view(H * W, 1, self.outputs), patches_PNK, self.weight)
        # A copy in the order N, H, W, O: what follows reads it once or more.
        return values_PNO.transpose(0, 1).contiguous().view(N, H, W, self.outputs).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Show sizes."""
        return f"{self.weight.shape[1] // self.kernel**2}, {self.outputs}, kernel={self.kernel}, side={self.side}"


def _kernels_take(images_NCHW: Tensor) -> bool:
    """Tell whether the C kernels can have this tensor."""
    return (
        images_NCHW.device.type == "cpu"
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


_max_pool: Callable[..., Tensor] = _MaxPool.apply
_response_norm: Callable[..., Tensor] = _ResponseNorm.apply
_map_norm: Callable[..., Tensor] = _MapNorm.apply
_patches: Callable[..., Tensor] = _Patches.apply


def _empty_channels_last(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)
