"""The float32 kernels against plain torch in float64, in value and gradient."""

import copy
import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from thumbnet.config import load_preset
from thumbnet.kernels import find_compiler, library, load_library
from thumbnet.models import build_model, dense, first_layer
from thumbnet.models.classic import build_classic
from thumbnet.models.first_layer import PooledFirst
from thumbnet.models.layers import PaddedConv2d, SameMaxPool
from thumbnet.models.norm_gelu import apply_norm_gelu, norm_gelu
from thumbnet.models.speed import build_speed

pytestmark = pytest.mark.skipif(load_library().handle is None, reason="no compiled kernels on this machine")

# The numbers in Winograd's matrices reach 32, so that its sums lose some four bits more than plain ones, relative to
# the largest value; those of a gradient of weights are over all positions, too.
ROUNDING, ROUNDING_BACK = 4e-5, 1e-4
CLEAR = 1e-3
"""Distance of a window's largest value from the second one, at which rounding cannot change which one wins."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def doubled(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def windows(values_NCHW: Tensor) -> Tensor:
    """The values of each 2x2 window, [N, C, H/2, W/2, 4]."""
    even = values_NCHW[..., : values_NCHW.shape[2] // 2 * 2, : values_NCHW.shape[3] // 2 * 2]
    return even.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)


SIZES = [
    (3, 24, 64, 31, 31, 3),  # the speed network's own sizes
    (5, 64, 64, 15, 15, 3),
    (9, 64, 96, 7, 7, 3),
    (70, 32, 32, 3, 3, 3),
    (3, 24, 64, 23, 23, 3),  # and on smaller pictures
    (5, 64, 64, 11, 11, 3),
    (9, 64, 96, 5, 5, 3),
    (70, 32, 32, 2, 2, 3),
    (20, 64, 64, 12, 12, 5),  # classic
    (1, 8, 32, 2, 2, 3),  # smaller than a tile
    (2, 40, 32, 40, 3, 3),
    (2, 32, 32, 5, 37, 5),
    (1, 264, 160, 6, 5, 3),  # more inputs than a unit has room for, outputs that are no whole group
]


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("images", "inputs", "outputs", "height", "width", "side"), SIZES)
def test_convolution_and_gradients(
    images: int, inputs: int, outputs: int, height: int, width: int, side: int, pool: bool
) -> None:
    if pool and side != 3:
        pytest.skip("only 3x3 convolutions pool")
    x = numbers(images, inputs, height, width).requires_grad_()
    weight = numbers(outputs, inputs, side, side, seed=1).requires_grad_()
    bias = None if pool else numbers(outputs, seed=2).requires_grad_()
    leaves = [tensor for tensor in (x, weight, bias) if tensor is not None]
    exact = doubled(*leaves)
    plain = F.conv2d(exact[0], exact[1], None if pool else exact[2], padding=side // 2)
    clear = torch.ones(())
    if pool:
        best = windows(plain.detach()).topk(2).values
        clear = (best[..., 0] - best[..., 1] > CLEAR * plain.abs().max()).double()
        plain = F.max_pool2d(plain, 2)
    gradient = numbers(*plain.shape, seed=3).double() * clear
    expected = torch.autograd.grad(plain, exact, gradient)
    found = dense.convolve(x, weight, bias, pool)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found.detach(), plain.detach()) < ROUNDING
    gradients = torch.autograd.grad(found, leaves, gradient.float())
    for value, wanted in zip(gradients, expected, strict=True):
        assert error(value, wanted) < ROUNDING_BACK
    # Where the input is fixed, its gradient is not computed, and that of the weights is the same.
    (alone,) = torch.autograd.grad(dense.convolve(x.detach(), weight, bias, pool), weight, gradient.float())
    assert torch.equal(alone, gradients[1])


@settings(max_examples=25)
@given(
    images=st.integers(1, 30),
    inputs=st.integers(1, 10),
    outputs=st.integers(1, 4),
    height=st.integers(2, 20),
    width=st.integers(2, 20),
    form=st.sampled_from([(3, False), (3, True), (5, False)]),
)
def test_any_size(images: int, inputs: int, outputs: int, height: int, width: int, form: tuple[int, bool]) -> None:
    test_convolution_and_gradients(images, 8 * inputs, 32 * outputs, height, width, *form)


@pytest.mark.parametrize(
    ("height", "width", "side", "pool", "patch"),
    [
        # By hand, patches times products of each: 64 x 36 against 25 x 64 for the 30 pixels that are pooled, and so on.
        (31, 31, 3, True, 8),
        (15, 15, 3, False, 6),  # 16 x 36 against 9 x 64, as many
        (7, 7, 3, False, 6),  # 4 x 36 against 4 x 64
        (7, 7, 3, True, 8),  # 4 x 36 against 64: of 7 pixels 6 are pooled
        (5, 5, 3, False, 8),
        (5, 5, 3, True, 6),
        (3, 3, 3, False, 6),
        (2, 6, 3, False, 8),  # 2 x 36 against 64
        (12, 12, 5, False, 8),
    ],
)
def test_patches_with_the_fewest_products(height: int, width: int, side: int, pool: bool, patch: int) -> None:
    assert dense.patch_side(height, width, side, pool=pool) == patch


def test_a_network_keeps_nothing_of_the_size_of_pictures() -> None:
    """One that has seen others gives and learns, to the bit, what a fresh one does."""
    torch.manual_seed(0)
    network = build_speed(num_classes=10, crop=32, widths=(32, 64, 64))
    for side, count in ((32, 7), (9, 3), (24, 40), (16, 5), (21, 1), (32, 6)):
        fresh = copy.deepcopy(network)
        images = numbers(count, 3, side, side, seed=side)
        steps = []
        for one in (network, fresh):
            one.zero_grad()
            logits = one(images)
            logits.square().sum().backward()
            steps.append([logits, *(p.grad for p in one.parameters() if p.grad is not None), *one.buffers()])
        assert len(steps[0]) > 10
        assert all(map(torch.equal, *steps)), side


@pytest.mark.parametrize("pool", [False, True])
def test_no_images_at_all(pool: bool) -> None:
    x, weight, bias = numbers(0, 8, 6, 6).requires_grad_(), numbers(32, 8, 3, 3).requires_grad_(), numbers(32)
    found = dense.convolve(x, weight, None if pool else bias.requires_grad_(), pool)
    assert found.shape == (0, 32, 3 if pool else 6, 3 if pool else 6)
    gradients = torch.autograd.grad(found, (x, weight), torch.empty_like(found))
    assert gradients[0].shape == x.shape
    assert not gradients[1].any()
    network = build_speed(num_classes=10, crop=16, widths=(32, 32, 32))
    assert network(numbers(0, 3, 16, 16)).shape == (0, 10)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert build_classic(num_classes=10, crop=24)(numbers(0, 3, 24, 24)).shape == (0, 10)


@pytest.mark.parametrize("lanes", [8, 16])
def test_vectors_of_either_width(lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors with AVX-512 compute 16 values at a time; others can be made to, in two halves."""
    compiler, openmp = find_compiler(), library._loaded_openmp()
    if compiler is None:
        pytest.skip("no compiler")
    assert openmp is not None
    sources = [str(Path(library.__file__).parent / name) for name in ("winograd.c", "conv_pool_dense.c")]
    built, flags = tmp_path / "kernels.so", [*library.compiler_flags(), *library.CONTRACT, f"-DLANES={lanes}"]
    subprocess.run([compiler, *flags, "-shared", *sources, openmp, "-o", str(built)], check=True)
    other = library.Library(handle=ctypes.CDLL(str(built)), why="test")
    for module in (dense, first_layer):
        monkeypatch.setattr(module, "load_library", lambda: other)
    test_convolution_and_gradients(7, 24, 96, 9, 10, 3, True)
    test_convolution_and_gradients(7, 24, 96, 9, 10, 5, False)
    images, conv, pool = numbers(3, 3, 9, 10), nn.Conv2d(3, 32, 5, padding=2), SameMaxPool(3, 2, relu=True)
    found = PooledFirst(conv, pool)(images)
    torch.testing.assert_close(found, pool(conv(images)), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(pool(conv(images)).square().sum(), list(conv.parameters()))
    for value, wanted in zip(torch.autograd.grad(found.square().sum(), list(conv.parameters())), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)


def test_nan_and_infinity_go_on() -> None:
    for bad in (float("nan"), float("inf")):
        x = numbers(2, 8, 6, 6)
        x[1, 3, 2, 2] = bad
        for pool in (False, True):
            weight = numbers(32, 8, 3, 3).requires_grad_()
            found = dense.convolve(x, weight, None, pool)
            assert found[0].isfinite().all()
            around = found[1, :, 0:2, 0:2] if pool else found[1, :, 1:4, 1:4]
            assert not around.isfinite().any()
            (gradient,) = torch.autograd.grad(found, weight, torch.ones_like(found))
            assert not gradient.isfinite().all()


@pytest.mark.parametrize(
    ("preset", "kernels"),
    [
        ("classic", {"conv_pool_dense", "winograd"}),
        ("cuda-convnet-80sec", {"conv_pool_dense", "winograd"}),
        ("quick", {"whiten_dense", "winograd", "norm_gelu"}),
        ("best", {"whiten_dense", "winograd", "norm_gelu"}),
    ],
)
def test_networks_run_on_the_kernels(preset: str, kernels: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_preset(preset)
    torch.manual_seed(0)
    network = build_model(recipe.model, num_classes=10, crop=recipe.distort.crop)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain, images, seen = copy.deepcopy(network), numbers(4, 3, recipe.distort.crop, recipe.distort.crop), set()
    call = library.Library.call

    def watched(self: library.Library, name: str, *arguments: Any) -> None:
        seen.add(name)
        call(self, name, *arguments)

    monkeypatch.setattr(library.Library, "call", watched)
    found = [network(images)]
    found[0].square().sum().backward()
    with torch.no_grad():
        found.append(network.eval()(images))
    assert {f"{name}_{way}" for name in kernels for way in ("forward", "backward")} <= seen
    monkeypatch.setattr(dense, "kernels_take", lambda images: False)
    expected = [plain(images)]
    expected[0].square().sum().backward()
    with torch.no_grad():
        expected.append(plain.eval()(images))
    for value, wanted in zip(found, expected, strict=True):
        assert error(value.detach(), wanted.detach().double()) < 1e-3
    for (name, parameter), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert F.cosine_similarity(parameter.grad.flatten(), other.grad.flatten(), dim=0) > 0.999, name


def test_a_frozen_network_gives_pictures_their_gradient() -> None:
    x, weight = numbers(2, 16, 6, 6).requires_grad_(), numbers(32, 16, 3, 3)
    (found,) = torch.autograd.grad(dense.convolve(x, weight, None, False).square().sum(), x)
    (exact,) = doubled(x)
    (expected,) = torch.autograd.grad(F.conv2d(exact, weight.double(), padding=1).square().sum(), exact)
    assert error(found, expected) < ROUNDING_BACK


def test_a_gradient_of_gradients_is_refused() -> None:
    weight = numbers(32, 8, 3, 3).requires_grad_()
    found = dense.convolve(numbers(2, 8, 6, 6), weight, None, False).square().sum()
    (gradient,) = torch.autograd.grad(found, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def compute_all() -> tuple[list[Tensor], list[Tensor]]:
    """What all the kernels make of some pictures, and the gradients of convolutions' weights and biases."""
    images, filters, shift = numbers(30, 3, 16, 16), numbers(24, 3, 2, 2, seed=5), numbers(24).requires_grad_()
    weight, bias = numbers(64, 24, 3, 3, seed=1).requires_grad_(), numbers(64, seed=2).requires_grad_()
    weight5, bias5 = numbers(64, 64, 5, 5, seed=3).requires_grad_(), numbers(64, seed=4).requires_grad_()
    x = dense.whiten(images, filters, shift)
    out, mean, variance = norm_gelu(dense.convolve(x, weight, None, True), bias, 1e-12, None, dense.LAYOUT)
    last = dense.convolve(out, weight5, bias5, False)
    gradients = torch.autograd.grad(last, (shift, bias, weight, weight5, bias5), numbers(*last.shape, seed=6))
    return [x, out, mean, variance, last, *gradients[:2]], list(gradients[2:])


@pytest.mark.parametrize("threads", [2, 5])
def test_results_do_not_depend_on_threads(threads: int, insist_same_bits: Callable[..., None]) -> None:
    insist_same_bits(lambda: compute_all()[0], threads)


def test_gradients_of_weights_repeat_to_the_bit() -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (3, 3, 40):  # more of them than images
            torch.set_num_threads(threads)
            found.append(compute_all()[1])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found[0], found[1]))
    for value, wanted in zip(found[2], found[0], strict=True):
        assert error(value, wanted.double()) < ROUNDING_BACK


@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("with_added", [False, True])
def test_norm_gelu(with_added: bool, channels: int) -> None:
    # A mean far from 0 takes digits from a variance that is computed from squares.
    z, bias = (numbers(6, channels, 5, 7) + 10).requires_grad_(), numbers(channels, seed=1).requires_grad_()
    added = numbers(6, channels, 5, 7, seed=2).requires_grad_() if with_added else None
    leaves = [tensor for tensor in (z, bias, added) if tensor is not None]
    exact = doubled(*leaves)
    normalized = F.batch_norm(exact[0], None, None, bias=exact[1], training=True, eps=1e-5)
    plain = F.gelu(normalized + exact[2] if with_added else normalized)
    gradient = numbers(*plain.shape, seed=3)
    expected = torch.autograd.grad(plain, exact, gradient.double())
    found, mean, variance = norm_gelu(z, bias, 1e-5, added, dense.LAYOUT)
    assert error(found.detach(), plain.detach()) < 1e-5
    assert error(mean, exact[0].mean((0, 2, 3))) < 1e-6
    assert error(variance, exact[0].var((0, 2, 3), unbiased=False)) < 1e-5
    for value, wanted in zip(torch.autograd.grad(found, leaves, gradient), expected, strict=True):
        assert error(value, wanted) < 1e-5


def test_gelu_is_torchs_everywhere() -> None:
    special = torch.tensor([0.0, -0.0, 40, -40, 1e30, -1e30, float("inf"), float("nan")])
    x = torch.cat([torch.linspace(-14, 14, 8 * 1000), special]).view(-1, 8, 1, 1)
    found = apply_norm_gelu(x, torch.ones(8), torch.zeros(8), None, dense.LAYOUT)
    torch.testing.assert_close(found.double(), F.gelu(x.double()), rtol=1e-6, atol=3e-7, equal_nan=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening(channels: int) -> None:
    images, weight = numbers(5, channels, 9, 11), numbers(8 * channels, channels, 2, 2, seed=1)
    bias = numbers(8 * channels, seed=2).requires_grad_()
    (exact,) = doubled(bias)
    plain = F.gelu(F.conv2d(images.double(), weight.double(), exact))
    gradient = numbers(*plain.shape, seed=3)
    found = dense.whiten(images, weight, bias)
    assert error(found.detach(), plain.detach()) < 1e-6
    expected = torch.autograd.grad(plain, exact, gradient.double())
    assert error(torch.autograd.grad(found, bias, gradient)[0], expected[0]) < 1e-5


def test_what_the_kernels_take() -> None:
    images, layer = numbers(1, 16, 8, 8), nn.Conv2d(16, 32, 3, padding=1)
    assert dense.kernels_convolve(images, layer)
    assert not dense.kernels_convolve(images.double(), layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert not dense.kernels_convolve(images, layer)
    for other in (nn.Conv2d(12, 32, 3), nn.Conv2d(16, 40, 3), nn.Conv2d(16, 32, 7), layer.double(), layer.bfloat16()):
        assert not dense.kernels_convolve(images, other)
    # What does not fit torch refuses, in its own words.
    layer = PaddedConv2d(16, 32, 3)
    for wrong in (numbers(1, 24, 8, 8), numbers(16, 8, 8), numbers(1, 16, 1, 8)):
        assert not dense.kernels_convolve(wrong, layer)
    with pytest.raises(RuntimeError, match="to have 16 channels"):
        layer(numbers(1, 24, 8, 8))
