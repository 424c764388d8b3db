"""Locally connected layers on AMX against an unfolding in float32, on inputs that bfloat16 holds exactly."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thumbnet.models import grid, local
from thumbnet.models.layers import LocallyConnected

pytestmark = pytest.mark.skipif(not grid.amx_ready(), reason="no AMX kernels on this machine")

# A bfloat16 result is rounded once from a float32 sum, to 8 bits; relative to the largest value.
ROUNDING = 2**-8
# Float32 sums that differ in their order only.
ORDER = 1e-5


def exact(*shape: int, seed: int = 0) -> Tensor:
    """Random float32 values that bfloat16 holds exactly."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


def connect_by_unfolding(x: Tensor, weight: Tensor, bias: Tensor, reach: int) -> Tensor:
    """A locally connected layer in torch's own operations."""
    N, C, H, W = x.shape
    kernel = 2 * reach + 1
    patches_NCKP = F.unfold(x, kernel, padding=reach).view(N, C, kernel**2, H * W)
    weight_PKCO = weight.view(H * W, kernel**2, C, -1)
    values_NOP = torch.einsum("nckp,pkco->nop", patches_NCKP, weight_PKCO) + bias.view(H * W, -1).T
    return values_NOP.view(N, -1, H, W)


@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "height", "width", "reach"),
    [
        (128, 64, 64, 8, 8, 1),  # the networks' own sizes
        (128, 64, 32, 6, 6, 1),
        (1, 32, 96, 3, 5, 1),  # a single picture; pictures wider and higher than square
        (33, 96, 32, 5, 3, 2),
        (70, 32, 32, 1, 1, 1),  # a window larger than the picture
        (16, 32, 64, 4, 4, 0),
    ],
)
def test_values_and_gradients(images: int, inputs: int, outputs: int, height: int, width: int, reach: int) -> None:
    x = exact(images, inputs, height, width).requires_grad_()
    weight = (exact(height * width, (2 * reach + 1) ** 2 * inputs, outputs, seed=1) / 16).requires_grad_()
    bias = exact(height * width * outputs, seed=2).requires_grad_()
    plain = connect_by_unfolding(x, weight, bias, reach)
    gradient = exact(*plain.shape, seed=3)
    expected = torch.autograd.grad(plain, (x, weight, bias), gradient)
    found = local.connect(x, weight, bias, reach)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, plain) < ROUNDING
    gradients = torch.autograd.grad(found, (x, weight, bias), gradient.bfloat16())
    for own, by_unfolding, limit in zip(gradients, expected, (ROUNDING, ORDER, ORDER), strict=True):
        assert own.dtype == torch.float32
        assert own.shape == by_unfolding.shape
        assert error(own, by_unfolding) < limit
    # Where the input is fixed, its gradient is not computed, and that of the weights is the same.
    (alone,) = torch.autograd.grad(local.connect(x.detach(), weight, bias, reach), weight, gradient.bfloat16())
    assert torch.equal(alone, gradients[1])


@settings(max_examples=15)
@given(
    images=st.integers(1, 70),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    reach=st.integers(0, 2),
)
def test_any_size(images: int, blocks: tuple[int, int], height: int, width: int, reach: int) -> None:
    test_values_and_gradients(images, 32 * blocks[0], 32 * blocks[1], height, width, reach)


@pytest.mark.parametrize("threads", [2, 5])
def test_results_do_not_depend_on_threads(threads: int, insist_same_bits: Callable[..., None]) -> None:
    def step() -> list[Tensor]:
        x, bias = exact(40, 64, 5, 5).requires_grad_(), exact(25 * 32, seed=2).requires_grad_()
        weight = exact(25, 9 * 64, 32, seed=1).requires_grad_()
        out = local.connect(x, weight, bias, 1)
        return [out, *torch.autograd.grad(out, (x, weight, bias), exact(*out.shape, seed=3).bfloat16())]

    insist_same_bits(step, threads)


def test_memory_of_any_layout() -> None:
    wide = exact(32, 64, 3, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    weight, bias = exact(12, 9 * 32, 32, seed=1).requires_grad_(), exact(12 * 32, seed=2)
    # Neither is dense: a half of the channels, and the gradient of a sum, which is one value for all.
    found = local.connect(wide[:, :32], weight, bias, 1)
    plain = connect_by_unfolding(wide[:, :32].float(), weight, bias, 1)
    assert error(found, plain) < ROUNDING
    (expected,) = torch.autograd.grad(plain.sum(), weight)
    assert error(torch.autograd.grad(found.sum(), weight)[0], expected) < ORDER


def test_a_batch_of_no_pictures() -> None:
    x, weight = torch.empty(0, 32, 2, 2).requires_grad_(), exact(4, 9 * 32, 32).requires_grad_()
    out = local.connect(x, weight, exact(128), 1)
    assert out.shape == (0, 32, 2, 2)
    assert not torch.autograd.grad(out.sum(), weight)[0].any()


def test_a_nan_reaches_what_sees_it() -> None:
    x = exact(3, 32, 5, 5)
    x[1, 7, 0, 0] = float("nan")
    found = local.connect(x, exact(25, 9 * 32, 32, seed=1), exact(25 * 32), 1)
    assert found[1, :, :2, :2].isnan().all()
    assert found.isnan().sum() == 4 * 32


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (48, 32), (32, 10)])
def test_the_layer_agrees_with_its_other_forms(inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = LocallyConnected(inputs, outputs, kernel=3, side=4, std=0.1)
    x = exact(5, inputs, 4, 4)
    assert not local.kernels_take(x, layer.weight, layer.kernel), "float32 was asked for"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert local.kernels_take(x, layer.weight, layer.kernel) == (inputs == outputs == 32)
        fast = layer(x)
        monkeypatch.setattr(local, "kernels_take", lambda *_: False)
        batched = layer(x)
    assert fast.dtype == batched.dtype == torch.bfloat16
    assert error(fast, layer(x)) < 2 * ROUNDING
    assert error(batched, layer(x)) < 2 * ROUNDING


def test_pictures_of_another_size_are_refused() -> None:
    layer = LocallyConnected(32, 32, kernel=3, side=4, std=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for shape in ((1, 32, 8, 8), (1, 32, 2, 2), (1, 64, 4, 4)):
            with pytest.raises(RuntimeError):
                layer(torch.zeros(shape))
