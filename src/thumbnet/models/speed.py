"""The speed network of the airbench family: whitening, three blocks of two or three 3x3 convolutions, a linear head.

Source of layers, initial values and constants: KellerJordan/cifar10-airbench (arXiv:2404.00498). With bf16 arithmetic
on a processor with AMX it runs on the kernels of `thumbnet.models.grid`, with float32 on any processor on those of
`thumbnet.models.dense`, else in plain torch; all agree to rounding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.errors import UsageError
from thumbnet.models import dense, grid
from thumbnet.models.initial import draw_normal
from thumbnet.models.norm_gelu import apply_norm_gelu, norm_gelu

NORM_EPS = 1e-12
NORM_MOMENTUM = 0.4
"""Share of the newest batch in the running statistics of normalization."""
WHITENING_EPS = 5e-4
"""Added to the eigenvalues, which keeps the filters of nearly empty directions from blowing up noise."""
WHITENING_IMAGES = 5000


class SpeedNet(nn.Sequential):
    """The network: images [N, channels, side, side], standardized over the data set, to logits [N, classes]."""

    examples_wanted = WHITENING_IMAGES
    """Training images that `initialize_from` asks for."""

    def initialize_from(self, images_NCHW: Tensor) -> None:
        """Set the weights that come from the data rather than from training: the whitening filters.

        Args:
            images_NCHW: prepared training images; the first 5,000 are enough.
        """
        whiten = self.get_submodule("whiten")
        assert isinstance(whiten, WhiteningConv)
        whiten.initialize_from(images_NCHW)


class WhiteningConv(nn.Module):
    """2x2 convolution without padding, bias, GELU: [N, C, H, W] -> [N, 8 C, H - 1, W - 1].

    Its filters decorrelate the values of a 2x2 patch, each with both signs; they follow from the data, only the bias
    learns. Whitening cuts the compute to a given accuracy by a third.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        filters = 8 * channels
        self.register_buffer("weight", torch.empty(filters, channels, 2, 2))
        self.weight: Tensor
        nn.init.orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(filters))

    def initialize_from(self, images_NCHW: Tensor) -> None:
        """Set the filters from the patches of images: eigenvectors over the roots of their eigenvalues."""
        size = 4 * images_NCHW.shape[1]
        products, count = torch.zeros(size, size, dtype=torch.float64), 0
        for part_NCHW in images_NCHW.split(500):
            patches_CP = F.unfold(part_NCHW, 2).transpose(0, 1).flatten(1)
            products += (patches_CP @ patches_CP.T).double()
            count += patches_CP.shape[1]
        values, vectors = torch.linalg.eigh(products / count)
        filters = (vectors / (values + WHITENING_EPS).sqrt()).T.reshape(size, -1, 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Whiten."""
        # The kernel has no gradient of the pictures, which whoever asks what the network looks at wants.
        if images_NCHW.shape[1] == 3 and not images_NCHW.requires_grad and grid.kernels_take(images_NCHW):
            return grid.whiten(images_NCHW, self.weight, self.bias)
        alike = images_NCHW.ndim == 4 and dense.fits(images_NCHW, self.weight)
        if alike and not images_NCHW.requires_grad and dense.kernels_take(images_NCHW):
            return dense.whiten(images_NCHW, self.weight, self.bias)
        return F.gelu(F.conv2d(images_NCHW, self.weight, self.bias))

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, kernel_size=2"


class Conv3x3(nn.Conv2d):
    """3x3 convolution with padding and without bias, then a 2x2 max pool if `pool`; starts as an identity.

    The first C_in filters pass their channel on unchanged (dirac), which cuts the compute to a given accuracy by 14 %.
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.pool = pool
        with torch.no_grad():
            nn.init.dirac_(self.weight[:inputs])

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Convolve and pool."""
        if self.out_channels % 32 == 0 and grid.kernels_take(images_NCHW):
            return grid.convolve(images_NCHW, self.weight, self.pool)
        if dense.kernels_convolve(images_NCHW, self):
            return dense.convolve(images_NCHW, self.weight, None, self.pool)
        outputs = super().forward(images_NCHW)
        return F.max_pool2d(outputs, 2) if self.pool else outputs

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.in_channels}, {self.out_channels}, pool={self.pool}"


class NormGelu(nn.Module):
    """Batch normalization with a bias that learns and a weight that stays 1, then GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, images_NCHW: Tensor, added_NCHW: Tensor | None = None) -> Tensor:
        """Normalize by the batch in training, which also moves the running statistics; by these in evaluation.

        What is `added` is added before the GELU.

        Raises:
            UsageError: a batch to train on has but one value of each channel, which has no variance.
        """
        if self.training and images_NCHW.numel() == len(self.bias):
            raise UsageError(
                "a batch of one picture of this size leaves one value to normalize: train on more pictures at once "
                "(--batch-size, and --grain if given), or on larger ones (distort.crop of 17 and more, schedule.resize)"
            )
        layout = None
        if len(self.bias) % 32 == 0 and images_NCHW.numel():
            takers = (kernels.LAYOUT for kernels in (grid, dense) if kernels.kernels_take(images_NCHW))
            layout = next(takers, None)
        if layout and self.training:
            output, mean, variance = norm_gelu(images_NCHW, self.bias, NORM_EPS, added_NCHW, layout)
            count = images_NCHW.numel() / len(self.bias)
            self.running_mean.lerp_(mean.float(), NORM_MOMENTUM)
            self.running_var.lerp_((variance * (count / (count - 1))).float(), NORM_MOMENTUM)
            return output
        if layout and not torch.is_grad_enabled():
            scale = (self.running_var + NORM_EPS).rsqrt()
            return apply_norm_gelu(images_NCHW, scale, self.bias - self.running_mean * scale, added_NCHW, layout)
        normalized = F.batch_norm(
            images_NCHW,
            self.running_mean,
            self.running_var,
            bias=self.bias,
            training=self.training,
            momentum=NORM_MOMENTUM,
            eps=NORM_EPS,
        )
        return F.gelu(normalized if added_NCHW is None else normalized + added_NCHW)

    def extra_repr(self) -> str:
        """Show the size."""
        return f"{len(self.bias)}"


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions, the first pooled; what its norm gives is added before the GELU of the third."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = Conv3x3(inputs, outputs, pool=True), NormGelu(outputs)
        self.conv2, self.norm2 = Conv3x3(outputs, outputs, pool=False), NormGelu(outputs)
        self.conv3, self.norm3 = Conv3x3(outputs, outputs, pool=False), NormGelu(outputs)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Convolve three times."""
        first_NCHW = self.norm1(self.conv1(images_NCHW))
        onward_NCHW, kept_NCHW = grid.fork(first_NCHW) if grid.kernels_take(first_NCHW) else (first_NCHW, first_NCHW)
        last_NCHW: Tensor = self.norm3(self.conv3(self.norm2(self.conv2(onward_NCHW))), kept_NCHW)
        return last_NCHW


class GlobalMaxPool(nn.Module):
    """Maximum over all positions: [N, C, H, W] -> [N, C]."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Pool."""
        contiguous = images_NCHW.contiguous(memory_format=torch.channels_last)
        return F.max_pool2d(contiguous, images_NCHW.shape[-2:]).flatten(1)


class ScaledLinear(nn.Linear):
    """Linear layer without bias whose result is multiplied by a constant."""

    def __init__(self, inputs: int, outputs: int, *, scale: float, std: float | None) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scale = scale
        if std is not None:
            draw_normal(self.weight, std)

    def forward(self, features_NC: Tensor) -> Tensor:
        """Multiply."""
        return super().forward(features_NC) * self.scale


def build_speed(
    *,
    num_classes: int,
    crop: int,
    channels: int = 3,
    widths: Sequence[int] = (64, 256, 256),
    head_scale: float = 1 / 9,
    head_std: float | None = None,
    residual: bool = False,
) -> SpeedNet:
    """Build the speed network; 1,973,920 weights of convolutions and head with the default widths and 10 classes.

    Args:
        num_classes: classes.
        crop: side of the input, at least 9 pixels.
        channels: channels of the input.
        widths: channels of the three blocks; multiples of 32 run on the kernels.
        head_scale: factor on the logits.
        head_std: deviation of the head's initial weights; PyTorch's default for None.
        residual: give each block a third convolution, and a way around the second and third.

    Raises:
        UsageError: the input is too small, there are not three widths, or an option is of another type.
    """
    if crop < 9:
        raise UsageError(
            f"{crop}x{crop} pixels are too few: the speed network halves its input three times and needs 9x9 "
            "(distort.crop)"
        )
    if (
        not isinstance(widths, Sequence)
        or len(widths) != 3
        or not all(isinstance(width, int) and width > 0 for width in widths)
    ):
        raise UsageError(f"model.options.widths is {widths}: the speed network takes three whole numbers above 0")
    for name, value in (("head_scale", head_scale), ("head_std", 0.0 if head_std is None else head_std)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"model.options.{name} is {value!r}: it must be a number")
    if not isinstance(residual, bool):
        raise UsageError(f"model.options.residual is {residual!r}: it must be true or false")
    layers: OrderedDict[str, nn.Module] = OrderedDict(whiten=WhiteningConv(channels))
    inputs = 8 * channels
    for block, width in enumerate(widths):
        if residual:
            layers[f"block{block + 1}"] = ResidualBlock(inputs, width)
            inputs = width
            continue
        for half in range(2):
            number = 2 * block + half + 1
            layers[f"conv{number}"] = Conv3x3(inputs, width, pool=half == 0)
            layers[f"norm{number}"] = NormGelu(width)
            inputs = width
    layers["pool"] = GlobalMaxPool()
    layers["head"] = ScaledLinear(inputs, num_classes, scale=head_scale, std=head_std)
    return SpeedNet(layers)
