import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thumbnet.kernels import load_library
from thumbnet.models import fused
from thumbnet.models.fused import same_padding
from thumbnet.models.layers import (
    LocallyConnected,
    LocalResponseNorm,
    MapResponseNorm,
    SameMaxPool,
    band_sum,
    patches_by_position,
)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


@pytest.fixture(params=["kernels", "plain"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the compiled kernels, and again with plain torch."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "kernels_take", lambda _: False)
    elif load_library().handle is None:
        pytest.skip(load_library().why)
    return str(request.param)


def channels_last(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


def pool_by_loops(image_HW: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """TensorFlow's SAME max pooling of one channel, from its definition."""
    height, width = image_HW.shape
    out = np.full((math.ceil(height / stride), math.ceil(width / stride)), -np.inf)
    top = max((out.shape[0] - 1) * stride + kernel - height, 0) // 2
    left = max((out.shape[1] - 1) * stride + kernel - width, 0) // 2
    for (y, x), (dy, dx) in itertools.product(np.ndindex(*out.shape), np.ndindex(kernel, kernel)):
        row, column = y * stride - top + dy, x * stride - left + dx
        if 0 <= row < height and 0 <= column < width:
            out[y, x] = max(out[y, x], image_HW[row, column])
    return out


def test_same_padding_of_the_tutorial() -> None:
    assert same_padding(24, 3, 2) == (0, 1)
    assert same_padding(12, 3, 2) == (0, 1)
    assert same_padding(25, 3, 2) == (1, 1)
    assert same_padding(24, 5, 1) == (2, 2)


@pytest.mark.usefixtures("engine")
@settings(max_examples=40)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3, 16, 32, 33]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    relu=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_max_pool_is_tensorflows(
    height: int, width: int, channels: int, kernel: int, stride: int, relu: bool, dtype: torch.dtype
) -> None:
    x = channels_last(2, channels, height, width, seed=height * 10 + width, dtype=dtype)
    x[0] = -math.inf
    pooled = SameMaxPool(kernel, stride, relu=relu)(x).float().numpy()
    for n, c in np.ndindex(2, channels):
        expected = pool_by_loops(x[n, c].float().numpy(), kernel, stride)
        np.testing.assert_array_equal(pooled[n, c], np.maximum(expected, 0) if relu else expected)


@pytest.mark.usefixtures("engine")
def test_a_window_of_more_positions_than_a_byte_counts() -> None:
    x = torch.arange(1.0, 34**2 + 1).view(1, 1, 34, 34).requires_grad_()
    SameMaxPool(17, 17, relu=True)(x).sum().backward()
    assert x.grad is not None
    # The last of the 289 positions of each window is the largest.
    assert x.grad[0, 0].nonzero().tolist() == [[16, 16], [16, 33], [33, 16], [33, 33]]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(2, 64, 24, 24), (3, 7, 5, 9), (1, 20, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_max_pool_gradient_goes_to_the_winner(dtype: torch.dtype, shape: tuple[int, ...], relu: bool) -> None:
    # Distinct values: a tie may go to either, and both are right.
    values = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(1)) - math.prod(shape) // 2
    x = (values % 251 - 125 + values / 1e6).view(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    x = x.detach().requires_grad_()
    reference = x.detach().float().requires_grad_()
    (top, bottom), (left, right) = same_padding(shape[2], 3, 2), same_padding(shape[3], 3, 2)
    expected = F.max_pool2d(F.pad(reference, (left, right, top, bottom), value=-math.inf), 3, 2)
    expected = F.relu(expected) if relu else expected
    gradient = channels_last(*expected.shape, dtype=dtype)
    pooled = SameMaxPool(3, 2, relu=relu)(x)
    pooled.backward(gradient)
    expected.backward(gradient.float())
    assert x.grad is not None
    assert reference.grad is not None
    assert torch.equal(pooled.float(), expected)
    if dtype == torch.float32:
        torch.testing.assert_close(x.grad, reference.grad, rtol=1e-6, atol=1e-6)
    else:
        # Ties between rounded values are frequent: what must hold is that each window gives its gradient once.
        torch.testing.assert_close(x.grad.float().sum((2, 3)), reference.grad.sum((2, 3)), rtol=0.02, atol=0.1)


def pool_gradient_by_loops(image_HW: np.ndarray, gradient_HW: np.ndarray, *, relu: bool) -> np.ndarray:
    """The gradient of 3x3 pooling of stride 2, even sides: each window's goes to the first of its largest values."""
    back = np.zeros_like(image_HW)
    for y, x in np.ndindex(*gradient_HW.shape):
        window = image_HW[2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        dy, dx = np.unravel_index(np.argmax(window), window.shape)
        if not relu or window[dy, dx] > 0:
            back[2 * y + dy, 2 * x + dx] += gradient_HW[y, x]
    return back


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_values_the_first_wins(dtype: torch.dtype, relu: bool) -> None:
    values = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0], dtype=dtype)
    drawn = torch.randint(0, len(values), (2, 8, 6, 32), generator=torch.Generator().manual_seed(0))
    x = values[drawn].permute(0, 3, 1, 2).requires_grad_()
    pooled = SameMaxPool(3, 2, relu=relu)(x)
    gradient = torch.randint(-8, 9, pooled.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    pooled.backward(gradient)
    assert x.grad is not None
    for n, c in np.ndindex(2, 32):
        image, back = x.detach()[n, c].float().numpy(), gradient[n, c].float().numpy()
        np.testing.assert_array_equal(x.grad[n, c].float().numpy(), pool_gradient_by_loops(image, back, relu=relu))


def response_norm_by_loops(x_CHW: np.ndarray, radius: int, bias: float, alpha: float) -> np.ndarray:
    """TensorFlow's lrn of one picture, from its definition, in float64."""
    y = np.empty_like(x_CHW, dtype=np.float64)
    for c in range(len(x_CHW)):
        near = x_CHW[max(c - radius, 0) : c + radius + 1].astype(np.float64)
        y[c] = x_CHW[c] / (bias + alpha * (near**2).sum(0)) ** 0.75
    return y


@pytest.mark.usefixtures("engine")
@settings(max_examples=30)
@given(
    channels=st.sampled_from([1, 5, 16, 37, 64]),
    radius=st.integers(0, 6),
    bias=st.sampled_from([1.0, 2.0]),
    alpha=st.sampled_from([0.001 / 9, 0.1]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    relu=st.booleans(),
)
def test_response_norm_is_tensorflows(
    channels: int, radius: int, bias: float, alpha: float, scale: float, relu: bool
) -> None:
    x = channels_last(2, channels, 3, 4, seed=channels) * scale
    y = LocalResponseNorm(radius=radius, bias=bias, alpha=alpha, relu=relu)(x).numpy()
    for n in range(2):
        picture = np.maximum(x[n].numpy(), 0) if relu else x[n].numpy()
        expected = response_norm_by_loops(picture, radius, bias, alpha)
        np.testing.assert_allclose(y[n], expected, rtol=5e-6, atol=1e-6 * scale)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [64, 32, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_response_norm_agrees_with_torch_in_value_and_gradient(dtype: torch.dtype, channels: int, relu: bool) -> None:
    x = channels_last(4, channels, 6, 5, dtype=dtype).mul_(4).requires_grad_()
    reference = x.detach().double().requires_grad_()
    size = 9
    expected = F.local_response_norm(F.relu(reference) if relu else reference, size, alpha=0.02 * size, beta=0.75, k=1)
    y = LocalResponseNorm(radius=4, bias=1.0, alpha=0.02, relu=relu)(x)
    gradient = channels_last(*x.shape, dtype=dtype, seed=3)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert x.grad is not None
    assert reference.grad is not None
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.double(), reference.grad, rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.usefixtures("engine")
def test_a_tiny_alpha_does_not_vanish_in_bf16() -> None:
    x = torch.full((1, 64, 1, 1), 16.0, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    y = LocalResponseNorm(radius=4, bias=1.0, alpha=0.001 / 9)(x)
    inner = 16 / (1 + 0.001 / 9 * 9 * 256) ** 0.75
    assert y[0, 32, 0, 0].item() == pytest.approx(inner, rel=2**-8)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("layer", [SameMaxPool(3, 2, relu=True), LocalResponseNorm(radius=4, bias=1, alpha=1e-4)])
def test_nan_reaches_the_output(layer: torch.nn.Module) -> None:
    # Of a product of 0 and infinity processors make a NaN with a minus sign.
    for dtype, sign in itertools.product((torch.float32, torch.bfloat16), (1.0, -1.0)):
        x = channels_last(1, 64, 6, 6, dtype=dtype)
        x[0, 5, 2, 2] = torch.tensor(math.nan).copysign(torch.tensor(sign))
        assert layer(x).isnan().any()


def test_band_sum_counts_neighbours() -> None:
    sums = band_sum(torch.ones(1, 5, 1, 1), 1).flatten()
    assert sums.tolist() == [2, 3, 3, 3, 2]


def map_norm_by_loops(x_HW: np.ndarray, size: int, alpha: float) -> np.ndarray:
    """cuda-convnet's response normalization of one map, from its definition, in float64."""
    y, reach = np.empty(x_HW.shape), size // 2
    for row, column in np.ndindex(*x_HW.shape):
        window = x_HW[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
        y[row, column] = x_HW[row, column] / (1 + alpha * (window.astype(float) ** 2).sum()) ** 0.75
    return y


@pytest.mark.usefixtures("engine")
@settings(max_examples=30)
@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    size=st.sampled_from([1, 3, 5]),
    alpha=st.sampled_from([5e-5 / 9, 0.1]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_map_norm_is_cuda_convnets(height: int, width: int, size: int, alpha: float, scale: float) -> None:
    x = channels_last(2, 3, height, width, seed=height) * scale
    y = MapResponseNorm(size=size, alpha=alpha)(x).numpy()
    for n, c in np.ndindex(2, 3):
        np.testing.assert_allclose(y[n, c], map_norm_by_loops(x[n, c].numpy(), size, alpha), rtol=5e-6)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("shape", [(2, 32, 8, 8), (3, 5, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_map_norm_agrees_with_its_formula_in_value_and_gradient(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = channels_last(*shape, dtype=dtype).mul_(4).requires_grad_()
    reference = x.detach().double().requires_grad_()
    channels = shape[1]
    # The sum over a window is a convolution with ones, one group for each channel.
    sums = F.conv2d(reference**2, torch.ones(channels, 1, 3, 3).double(), padding=1, groups=channels)
    expected = reference / (1 + 0.02 * sums) ** 0.75
    gradient = channels_last(*shape, dtype=dtype, seed=3)
    y = MapResponseNorm(size=3, alpha=0.02)(x)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert x.grad is not None
    assert reference.grad is not None
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.double(), reference.grad, rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.usefixtures("engine")
def test_map_norm_keeps_its_type_and_a_tiny_alpha() -> None:
    x = torch.full((1, 1, 3, 3), 256.0, dtype=torch.bfloat16)
    y = MapResponseNorm(size=3, alpha=5e-5 / 9)(x)
    assert y.dtype == torch.bfloat16
    assert y[0, 0, 1, 1].item() == pytest.approx(256 / (1 + 5e-5 / 9 * 9 * 256**2) ** 0.75, rel=2**-8)


def local_by_loops(x_CHW: np.ndarray, layer: LocallyConnected) -> np.ndarray:
    """A locally connected layer on one picture, from its definition, in float64."""
    channels, height, width = x_CHW.shape
    kernel, reach = layer.kernel, layer.kernel // 2
    weight = layer.weight.detach().double().numpy().reshape(height, width, kernel, kernel, channels, layer.outputs)
    y = layer.bias.detach().double().numpy().reshape(height, width, layer.outputs).copy()
    for row, column, dy, dx in np.ndindex(height, width, kernel, kernel):
        from_row, from_column = row + dy - reach, column + dx - reach
        if 0 <= from_row < height and 0 <= from_column < width:
            y[row, column] += x_CHW[:, from_row, from_column] @ weight[row, column, dy, dx]
    return y.transpose(2, 0, 1)


@pytest.mark.usefixtures("engine")
@settings(max_examples=25)
@given(
    count=st.integers(1, 5),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    side=st.integers(1, 6),
    kernel=st.sampled_from([1, 3, 5]),
    contiguous=st.booleans(),
)
def test_locally_connected_by_loops(
    count: int, inputs: int, outputs: int, side: int, kernel: int, contiguous: bool
) -> None:
    torch.manual_seed(side)
    layer = LocallyConnected(inputs, outputs, kernel=kernel, side=side, std=0.5)
    torch.nn.init.normal_(layer.bias)
    x = channels_last(count, inputs, side, side, seed=count)
    y = layer(x.contiguous() if contiguous else x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    for n in range(count):
        expected = local_by_loops(x[n].double().numpy(), layer)
        np.testing.assert_allclose(y[n].detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_locally_connected_has_the_gradient_of_its_values() -> None:
    torch.manual_seed(0)
    layer = LocallyConnected(2, 3, kernel=3, side=4, std=0.5).double()
    x = channels_last(2, 2, 4, 4).double().requires_grad_()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return result

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias), fast_mode=True)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_have_the_gradient_of_an_unfolding(dtype: torch.dtype, kernel: int) -> None:
    x = channels_last(3, 7, 4, 5, dtype=dtype).requires_grad_()
    reference = x.detach().double().requires_grad_()
    unfolded = F.unfold(reference, kernel, padding=kernel // 2).view(3, 7, kernel**2, 20)  # N, C, taps, positions
    expected = unfolded.permute(3, 0, 2, 1).reshape(20, 3, kernel**2 * 7)
    patches = patches_by_position(x, kernel)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    patches.backward(gradient)
    expected.backward(gradient.double())
    assert x.grad is not None
    assert reference.grad is not None
    assert torch.equal(patches.double(), expected)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(x.grad.double(), reference.grad, rtol=tolerance, atol=tolerance)


def test_locally_connected_runs_in_fast_arithmetic_under_autocast() -> None:
    torch.manual_seed(0)
    layer = LocallyConnected(64, 32, kernel=3, side=6, std=0.04)
    x = channels_last(16, 64, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = layer(x)
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), layer(x), rtol=2e-2, atol=2e-2)


def test_with_the_same_weights_everywhere_it_is_a_convolution() -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(4, 5, 3, padding=1)
    layer = LocallyConnected(4, 5, kernel=3, side=7, std=0.1)
    shared = convolution.weight.detach().permute(2, 3, 1, 0).reshape(1, 36, 5)
    with torch.no_grad():
        layer.weight.copy_(shared.expand(49, -1, -1))
        assert convolution.bias is not None
        layer.bias.copy_(convolution.bias.repeat(49))
    x = channels_last(3, 4, 7, 7)
    torch.testing.assert_close(layer(x), convolution(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, 2, 4])
def test_even_windows_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        MapResponseNorm(size=size, alpha=1.0)
    with pytest.raises(ValueError, match="odd"):
        LocallyConnected(1, 1, kernel=size, side=4, std=1.0)
