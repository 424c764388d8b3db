import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.engine import dtype_of
from thumbnet.kernels import load_library
from thumbnet.models import first_layer, grid
from thumbnet.models.first_layer import PooledFirst
from thumbnet.models.fused import same_padding
from thumbnet.models.layers import SameMaxPool

needs_kernels = pytest.mark.skipif(load_library().handle is None, reason="there are no kernels")


@pytest.fixture(autouse=True, params=["bf16", "fp32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "bf16" and not grid.amx_ready():
        pytest.skip("the processor has no AMX, or there are no kernels")
    with torch.autocast("cpu", torch.bfloat16, enabled=request.param == "bf16"):
        yield request.param


def whole_numbers(*shape: int, below: int, seed: int) -> Tensor:
    """Return small whole numbers: sums of their products are exact in any order."""
    return torch.randint(-below, below + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def build(channels: int, outputs: int, side: int, pool: SameMaxPool) -> PooledFirst:
    """Return a convolution of whole numbers, its pool, and something behind them."""
    conv = nn.Conv2d(channels, outputs, side, padding=side // 2)
    with torch.no_grad():
        conv.weight.copy_(whole_numbers(*conv.weight.shape, below=3, seed=1))
        assert conv.bias is not None
        conv.bias.copy_(whole_numbers(outputs, below=5, seed=2))
    network = PooledFirst(conv, pool, nn.Identity())
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def pooled_by_torch(images: Tensor, conv: nn.Conv2d, pool: SameMaxPool, precision: str) -> Tensor:
    """The same in float32, but for what the convolution makes, which may be rounded to bfloat16."""
    with torch.autocast("cpu", enabled=False):
        maps = F.conv2d(images, conv.weight, conv.bias, padding=conv.padding)  # type: ignore[arg-type]
        if precision == "bf16":
            maps = maps + (maps.bfloat16().float() - maps).detach()
        (top, bottom), (left, right) = (same_padding(side, pool.kernel, pool.stride) for side in maps.shape[2:])
        pooled = F.max_pool2d(F.pad(maps, (left, right, top, bottom), value=-math.inf), pool.kernel, pool.stride)
        return F.relu(pooled) if pool.relu else pooled


@needs_kernels
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("shape", "outputs", "side", "pool"),
    [
        ((20, 3, 24, 24), 64, 5, (3, 2)),
        ((17, 3, 32, 32), 32, 5, (3, 2)),
        ((3, 3, 9, 7), 32, 5, (3, 2)),
        ((2, 1, 5, 11), 96, 7, (2, 2)),
        ((1, 5, 6, 6), 32, 3, (4, 3)),
        ((4, 16, 4, 3), 64, 1, (1, 1)),
        ((1, 3, 1, 1), 32, 5, (3, 2)),
    ],
)
def test_agrees_with_torch_in_value_and_gradient(
    shape: tuple[int, ...], outputs: int, side: int, pool: tuple[int, int], relu: bool, precision: str
) -> None:
    network = build(shape[1], outputs, side, SameMaxPool(*pool, relu=relu))
    conv = network[0]
    images = whole_numbers(*shape, below=4, seed=3)
    assert first_layer.kernels_take(images, *network[:2])
    expected = pooled_by_torch(images, conv, network[1], precision)
    own = network(images)
    assert own.dtype == dtype_of(precision)
    assert own.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(own.float(), expected)
    gradient = whole_numbers(*own.shape, below=2, seed=4)
    wanted = torch.autograd.grad(expected, (conv.weight, conv.bias), gradient)
    own.backward(gradient.to(own.dtype))
    assert torch.equal(conv.weight.grad, wanted[0])
    assert torch.equal(conv.bias.grad, wanted[1])


@needs_kernels
def test_its_bits_repeat_and_those_of_its_values_do_not_depend_on_the_threads(precision: str) -> None:
    images, results = torch.randn(21, 3, 24, 24, generator=torch.Generator().manual_seed(0)), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            network = build(3, 64, 5, SameMaxPool(3, 2, relu=True))
            output = network(images)
            (output.float() ** 2).sum().backward()
            results.append((output, network[0].weight.grad, network[0].bias.grad))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, results[1], results[2]))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0], results[1], strict=True):
        # In float32 each thread adds up the gradients of its images.
        torch.testing.assert_close(one, other, rtol=0, atol=0 if precision == "bf16" else 1e-5 * one.abs().max().item())


@needs_kernels
def test_a_hook_sees_each_layer_and_changes_nothing() -> None:
    network = build(3, 32, 5, SameMaxPool(3, 2, relu=True))
    images = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    alone = network(images)
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, _: Any, output: Tensor) -> None:
        seen[type(module).__name__] = output

    for layer in network:
        layer.register_forward_hook(look)
    watched = network(images)
    assert torch.equal(alone, watched)
    assert watched.requires_grad
    assert seen["Conv2d"].shape == (4, 32, 12, 12)
    assert seen["Identity"] is watched
    torch.testing.assert_close(seen["SameMaxPool"], watched.detach(), rtol=2**-7, atol=2**-7)


@needs_kernels
def test_nan_reaches_the_output() -> None:
    images = torch.zeros(2, 3, 12, 12)
    images[1, 2, 5, 5] = math.nan
    output = build(3, 32, 5, SameMaxPool(3, 2, relu=True))(images)
    assert not output[0].isnan().any()
    assert output[1, :, 2, 2].isnan().all()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 48, 5, padding=2),
        nn.Conv2d(4, 32, 5, padding=2),
        nn.Conv2d(3, 32, 4, padding=2),
        nn.Conv2d(3, 32, 5),
        nn.Conv2d(3, 32, 5, padding=2, stride=2),
        nn.Conv2d(3, 32, 5, padding=2, bias=False),
        nn.Conv2d(3, 32, 5, padding=4, dilation=2),
        nn.Conv2d(3, 33, 5, padding=2, groups=3),
        nn.Conv2d(3, 32, (5, 3), padding=(2, 1)),
        nn.Conv2d(3, 32, 5, padding=2, padding_mode="reflect"),
        nn.Conv2d(3, 32, 5, padding="same"),
        nn.Conv2d(3, 32, 5, padding=2).double(),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_torch(conv: nn.Conv2d) -> None:
    images = torch.randn(2, conv.in_channels, 12, 12, dtype=conv.weight.dtype)
    network = PooledFirst(conv, SameMaxPool(3, 2, relu=True))
    assert not first_layer.kernels_take(images, *network)
    network(images).sum().backward()
    assert conv.weight.grad is not None


def test_the_gradient_of_pictures_and_other_arithmetic_are_left_to_torch() -> None:
    network = build(3, 32, 5, SameMaxPool(3, 2, relu=True))
    images = torch.randn(2, 3, 12, 12, requires_grad=True)
    network(images).sum().backward()
    assert images.grad is not None
    assert not first_layer.kernels_take(images, *network[:2])
    assert not first_layer.kernels_take(images.detach(), network[0], nn.MaxPool2d(3, 2))
    assert not first_layer.kernels_take(images.detach(), network[0], SameMaxPool(17, 2))
    with torch.autocast("cpu", torch.float16):
        assert not first_layer.kernels_take(images.detach(), *network[:2])
