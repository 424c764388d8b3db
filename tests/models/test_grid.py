"""The AMX kernels against plain fp32 torch, in value and gradient, on inputs that bfloat16 holds exactly."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thumbnet.models import grid
from thumbnet.models.norm_gelu import apply_norm_gelu, norm_gelu

pytestmark = pytest.mark.skipif(not grid.amx_ready(), reason="no AMX kernels on this machine")

# A bfloat16 result is rounded once from a float32 sum, to 8 bits; relative to the largest value.
ROUNDING = 2**-8


def exact(*shape: int, seed: int = 0) -> Tensor:
    """Random float32 values that bfloat16 holds exactly."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Random whole numbers so small that float32 sums of their products are exact in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


def pads_are_zero(tensor: Tensor) -> bool:
    """Whether everything outside the pictures of a grid tensor is zero, from the margin to the last picture."""
    N, C, H, W = tensor.shape
    stored = grid.stored_channels(C)
    margin = (W + 2) * stored
    memory = tensor.as_strided((margin + N * (H + 1) * (W + 1) * stored,), (1,), 0)
    inside = memory[margin:].reshape(N, H + 1, W + 1, stored).clone()
    inside[:, :H, :W, :C] = 0
    return not memory[:margin].any() and not inside.any()


def test_to_grid_copies_once_and_keeps_values() -> None:
    images = exact(3, 24, 5, 7)
    tensor = grid.to_grid(images)
    assert torch.equal(tensor.float(), images)
    assert pads_are_zero(tensor)
    assert grid.to_grid(tensor) is tensor
    # Parts and copies are not laid out like that and must be copied.
    assert grid.to_grid(tensor[1:]) is not tensor
    assert torch.equal(grid.to_grid(tensor[1:]).float(), images[1:])
    assert pads_are_zero(grid.to_grid(tensor[:, :, :4]))


def test_a_part_of_a_dense_tensor_with_the_strides_of_a_grid_is_copied() -> None:
    part = exact(3, 32, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last)[:, :, 1:, 1:]
    assert part.stride() == grid.empty_grid(*part.shape).stride()
    assert part.storage_offset() == grid.empty_grid(*part.shape).storage_offset()
    tensor = grid.to_grid(part)
    assert torch.equal(tensor, part)
    assert pads_are_zero(tensor)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "height", "width"),
    [
        (3, 32, 64, 31, 31),  # the network's own sizes
        (5, 64, 64, 15, 15),
        (9, 64, 96, 7, 7),
        (70, 32, 32, 3, 3),
        (1, 24, 32, 11, 11),  # as after whitening: 24 channels stored as 32
        (2, 32, 32, 40, 3),  # rows longer and shorter than a tile, odd and even
        (2, 32, 32, 4, 37),
        (130, 32, 64, 2, 2),
    ],
)
def test_convolution_and_gradients(images: int, inputs: int, outputs: int, height: int, width: int, pool: bool) -> None:
    x = whole(images, inputs, height, width).requires_grad_()
    weight = whole(outputs, inputs, 3, 3, seed=1).requires_grad_()
    plain = F.conv2d(x, weight, padding=1)
    # Rounded, as the kernels do it before they pool: where two of a window round to the same, the first one wins.
    plain = plain + (plain.bfloat16().float() - plain).detach()
    plain = F.max_pool2d(plain, 2) if pool else plain
    gradient = whole(*plain.shape, seed=2)
    expected = torch.autograd.grad(plain, (x, weight), gradient)
    x2, weight2 = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    found = grid.convolve(x2, weight2, pool)
    assert pads_are_zero(found.detach())
    assert torch.equal(found.float(), plain)
    x_gradient, weight_gradient = torch.autograd.grad(found, (x2, weight2), gradient.bfloat16())
    assert torch.equal(x_gradient, expected[0].bfloat16().float())
    assert torch.equal(weight_gradient, expected[1])
    # Where the input is fixed, its gradient is not computed, and that of the weights is the same.
    (alone,) = torch.autograd.grad(grid.convolve(x.detach(), weight2, pool), weight2, gradient.bfloat16())
    assert torch.equal(alone, weight_gradient)


@settings(max_examples=15)
@given(
    images=st.integers(1, 40),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    height=st.integers(2, 20),
    width=st.integers(2, 20),
    pool=st.booleans(),
)
def test_any_size(images: int, blocks: tuple[int, int], height: int, width: int, pool: bool) -> None:
    test_convolution_and_gradients(images, 32 * blocks[0], 32 * blocks[1], height, width, pool)


@pytest.mark.parametrize("threads", [2, 5])
def test_results_do_not_depend_on_threads(threads: int, insist_same_bits: Callable[..., None]) -> None:
    def step() -> list[Tensor]:
        x, weight = exact(40, 64, 7, 7).requires_grad_(), exact(128, 64, 3, 3, seed=1).requires_grad_()
        bias = exact(128, seed=2).requires_grad_()
        out, mean, variance = norm_gelu(grid.convolve(x, weight, False), bias, 1e-12, None, grid.LAYOUT)
        return [out, mean, variance, *torch.autograd.grad(out, (x, weight, bias), exact(*out.shape, seed=3).bfloat16())]

    insist_same_bits(step, threads)


def test_a_nan_wins_the_pool_and_stays() -> None:
    x = exact(2, 32, 6, 6)
    x[1, 3, 2, 2] = float("nan")
    found = grid.convolve(x, exact(32, 32, 3, 3, seed=1), True)
    assert not found[0].isnan().any()
    assert found[1, :, :2, :2].isnan().all()


@pytest.mark.parametrize("with_added", [False, True])
def test_norm_gelu_and_gradients(with_added: bool) -> None:
    z = exact(70, 64, 7, 7).mul(2).add(1).bfloat16().float().requires_grad_()
    bias = exact(64, seed=1).requires_grad_()
    inputs = (z, bias, *([exact(70, 64, 7, 7, seed=3).requires_grad_()] if with_added else []))
    plain = F.gelu(F.batch_norm(z, None, None, None, bias, True, 0.0, 1e-12) + (inputs[2] if with_added else 0))
    gradient = exact(*plain.shape, seed=2)
    expected = torch.autograd.grad(plain, inputs, gradient)
    copies = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    found, mean, variance = norm_gelu(*copies[:2], 1e-12, copies[2] if with_added else None, grid.LAYOUT)
    assert pads_are_zero(found.detach())
    torch.testing.assert_close(mean.float(), z.mean((0, 2, 3)))
    torch.testing.assert_close(variance.float(), z.var((0, 2, 3), unbiased=False))
    z_gradient, bias_gradient, *others = torch.autograd.grad(found, copies, gradient.bfloat16())
    assert error(found, plain) < ROUNDING
    # Rounded twice: between the two passes, and at the end.
    assert error(z_gradient, expected[0]) < 2 * ROUNDING
    assert error(bias_gradient, expected[1]) < 1e-4
    if with_added:
        assert error(others[0], expected[2]) < ROUNDING


def test_gradients_of_a_fork_add_up() -> None:
    weight, bias, gradient = exact(64, 64, 3, 3, seed=1), exact(64, seed=2), exact(3, 64, 5, 6, seed=3).bfloat16()

    def around(onward: Tensor, kept: Tensor) -> Tensor:
        return norm_gelu(grid.convolve(onward, weight, False), bias, 1e-12, kept, grid.LAYOUT)[0]

    x = grid.to_grid(exact(3, 64, 5, 6)).requires_grad_()
    (found,) = torch.autograd.grad(around(*grid.fork(x)), x, gradient)
    apart = [grid.to_grid(x.detach().clone()).requires_grad_() for _ in range(2)]
    parts = torch.autograd.grad(around(*apart), apart, gradient)
    assert torch.equal(found, parts[0] + parts[1])
    assert pads_are_zero(found)


def test_gelu_over_its_whole_range() -> None:
    x = torch.linspace(-12, 12, 32 * 64 * 64).reshape(1, 32, 64, 64).bfloat16()
    x[0, 0, 0, :4] = torch.tensor([1e30, float("nan"), -100.0, -1e30])
    one, zero = torch.ones(32), torch.zeros(32)
    found = apply_norm_gelu(grid.to_grid(x), one, zero, None, grid.LAYOUT).float()
    expected = F.gelu(x.float())
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-4, equal_nan=True)


def test_whitening_keeps_float32_precision_where_patches_nearly_cancel() -> None:
    images = 1 + 1e-3 * torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(24, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    weight = 100 * (weight - weight.mean((1, 2, 3), keepdim=True))
    bias = exact(24, seed=2).requires_grad_()
    plain = F.gelu(F.conv2d(images, weight, bias))
    gradient = exact(*plain.shape, seed=3)
    (expected,) = torch.autograd.grad(plain, bias, gradient)
    bias2 = bias.detach().clone().requires_grad_()
    found = grid.whiten(images, weight, bias2)
    assert pads_are_zero(found.detach())
    assert error(found, plain) < 1.5 * ROUNDING  # the product of the two remainders is left out
    (bias_gradient,) = torch.autograd.grad(found, bias2, gradient.bfloat16())
    assert error(bias_gradient, expected) < ROUNDING
