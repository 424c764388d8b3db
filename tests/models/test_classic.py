import math

import pytest
import torch
from torch import nn

from thumbnet.config import ModelConfig
from thumbnet.errors import UsageError
from thumbnet.models import build_model
from thumbnet.models.classic import FlattenHWC, build_classic
from thumbnet.models.describe import describe_layers


def test_parameters_and_multiply_adds_of_the_tutorial() -> None:
    layers = {layer.name: layer for layer in describe_layers(build_classic(num_classes=10, crop=24), (3, 24, 24))}
    assert {name: layer.parameters for name, layer in layers.items() if layer.parameters} == {
        "conv1": 5 * 5 * 3 * 64 + 64,
        "conv2": 5 * 5 * 64 * 64 + 64,
        "local3": 2304 * 384 + 384,
        "local4": 384 * 192 + 192,
        "softmax_linear": 192 * 10 + 10,
    }
    assert sum(layer.parameters for layer in layers.values()) == 1_068_298
    assert sum(layer.multiply_adds for layer in layers.values()) == 18_470_784
    assert layers["pool1"].output_shape == (64, 12, 12)
    assert layers["pool2"].output_shape == (64, 6, 6)


@pytest.mark.parametrize(
    ("name", "std", "bias"),
    [
        ("conv1", 0.05, 0),
        ("conv2", 0.05, 0.1),
        ("local3", 0.04, 0.1),
        ("local4", 0.04, 0.1),
        ("softmax_linear", 1 / 192, 0),
    ],
)
def test_initial_weights_are_truncated_normal(name: str, std: float, bias: float) -> None:
    torch.manual_seed(0)
    layer = build_classic(num_classes=10, crop=24).get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight.detach()
    assert weight.abs().max() <= 2 * std
    # A normal cut at two deviations has this share of its variance left.
    kept = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    assert weight.std().item() == pytest.approx(std * math.sqrt(kept), rel=0.03)
    assert layer.bias is not None
    assert layer.bias.eq(bias).all()


def test_dense_layers_see_height_width_channel_order() -> None:
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).float()
    expected = torch.stack([x[n, c, y, z] for n in range(2) for y in range(2) for z in range(2) for c in range(3)])
    assert torch.equal(FlattenHWC()(x), expected.view(2, 12))


def test_agrees_with_the_network_written_in_plain_torch() -> None:
    """The same layers in the tutorial's order (ReLU before the pool) with PyTorch's own operations."""
    torch.manual_seed(1)
    model = build_classic(num_classes=10, crop=24)
    x = torch.randn(4, 3, 24, 24)
    p = dict(model.named_parameters())
    f = nn.functional

    def pool(values: torch.Tensor) -> torch.Tensor:
        return f.max_pool2d(f.pad(values, (0, 1, 0, 1), value=-math.inf), 3, 2)

    def norm(values: torch.Tensor) -> torch.Tensor:
        return f.local_response_norm(values, 9, alpha=0.001, beta=0.75, k=1.0)

    h = norm(pool(f.relu(f.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=2))))
    h = pool(norm(f.relu(f.conv2d(h, p["conv2.weight"], p["conv2.bias"], padding=2))))
    h = h.permute(0, 2, 3, 1).reshape(4, -1)
    h = f.relu(f.linear(h, p["local3.weight"], p["local3.bias"]))
    h = f.relu(f.linear(h, p["local4.weight"], p["local4.bias"]))
    expected = f.linear(h, p["softmax_linear.weight"], p["softmax_linear.bias"])
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-6)
    weights = list(p.values())
    gradients = torch.autograd.grad(model(x).square().sum(), weights)
    references = torch.autograd.grad(expected.square().sum(), weights)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5 * reference.abs().max().item())


@pytest.mark.parametrize(("crop", "classes", "channels"), [(32, 100, 3), (28, 10, 1), (7, 2, 3), (1, 2, 3)])
def test_other_sizes(crop: int, classes: int, channels: int) -> None:
    model = build_model(ModelConfig(name="classic"), num_classes=classes, crop=crop, channels=channels)
    assert model(torch.randn(2, channels, crop, crop)).shape == (2, classes)


def test_unknown_names_and_options() -> None:
    with pytest.raises(UsageError, match="did you mean 'classic'"):
        build_model(ModelConfig(name="clasic"), num_classes=10, crop=24)
    with pytest.raises(UsageError, match="depth"):
        build_model(ModelConfig(name="classic", options={"depth": 3}), num_classes=10, crop=24)
    for impossible in (0, -0.1, "small", True):
        with pytest.raises(UsageError, match=r"initial_std is .*: it must be a number above 0"):
            build_model(ModelConfig(name="classic", options={"initial_std": impossible}), num_classes=10, crop=24)


def test_describing_leaves_the_network_as_it_was() -> None:
    model = build_classic(num_classes=10, crop=24).train()
    model[1].eval()  # a frozen layer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    describe_layers(model, (3, 24, 24))
    assert [module.training for module in model] == [number != 1 for number in range(len(model))]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
