"""Layers that PyTorch lacks, or does with other semantics.

TensorFlow's SAME max pool, response normalization across channels and within each map, locally connected layers.
On processors pooling and normalization run as one fused C pass each way, convolutions in float32 on kernels of their
own, and locally connected layers in bf16 on AMX units, where the compiled kernels are at hand, else in plain torch; the
two agree to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.models import dense, fused, local
from thumbnet.models.fused import same_padding
from thumbnet.models.initial import draw_normal


class PaddedConv2d(nn.Conv2d):
    """A convolution with biases whose border is padded with zeros so that an odd kernel keeps the sides."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Convolve."""
        if dense.kernels_convolve(images_NCHW, self):
            return dense.convolve(images_NCHW, self.weight, self.bias, False)
        return super().forward(images_NCHW)


class SameMaxPool(nn.Module):
    """Max pooling with SAME padding: [N, C, H, W] -> [N, C, ceil(H/stride), ceil(W/stride)], ReLU after it on request.

    ReLU and maximum commute; after pooling there is a quarter of the values left to clip.
    """

    def __init__(self, kernel: int, stride: int, *, relu: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.relu = kernel, stride, relu

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Pool over the two last dimensions."""
        if fused.kernels_take(images_NCHW) and self.kernel <= fused.MAX_KERNEL:
            return fused.max_pool(images_NCHW, self.kernel, self.stride, self.relu)
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
        if fused.kernels_take(images_NCHW) and self.radius <= fused.MAX_RADIUS:
            return fused.response_norm(images_NCHW, self.radius, self.bias, self.alpha, self.relu)
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
    if fused.kernels_take(images_NCHW):
        return fused.patches(images_NCHW, kernel // 2)
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
        if fused.kernels_take(images_NCHW):
            return fused.map_norm(images_NCHW, self.size // 2, self.alpha)
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

    [N, inputs, side, side] -> [N, outputs, side, side]; the border is padded with zeros so that the side stays. Without
    kernels for it (`local`) all positions are one batched matrix product, [positions, N, kernel^2 inputs] x [positions,
    kernel^2 inputs, outputs].
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, side: int, std: float) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}: only an odd one keeps the side")
        self.kernel, self.side, self.outputs = kernel, side, outputs
        self.weight = nn.Parameter(torch.empty(side * side, kernel * kernel * inputs, outputs))
        """Rows in the order row, column, channel of the patch; with them as columns the gradient costs twice."""
        self.bias = nn.Parameter(torch.zeros(side * side * outputs))
        draw_normal(self.weight, std)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Connect; the result is channels-last in memory."""
        if local.kernels_take(images_NCHW, self.weight, self.kernel):
            return local.connect(images_NCHW, self.weight, self.bias, self.kernel // 2)
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
