import math

import numpy as np
import pytest
import torch
from torch import nn

from thumbnet.config import ModelConfig, load_preset
from thumbnet.errors import UsageError
from thumbnet.models import build_model
from thumbnet.models.cuda_convnet import NETS, build_cuda_convnet
from thumbnet.models.describe import describe_layers
from thumbnet.models.layers import LocallyConnected

CONVOLUTIONS = {"conv1": 32 * 75 + 32, "conv2": 32 * 800 + 32, "conv3": 64 * 800 + 64}
WIDE_CONVOLUTIONS = {"conv1": 64 * 75 + 64, "conv2": 64 * 1600 + 64}
PARAMETERS = {
    "80sec": CONVOLUTIONS | {"dense64": 16 * 64 * 64 + 64, "dense10": 64 * 10 + 10},
    "18pct": CONVOLUTIONS | {"dense10": 16 * 64 * 10 + 10},
    "13pct": WIDE_CONVOLUTIONS
    | {"local3": 64 * (9 * 64 * 32 + 32), "local4": 64 * (9 * 32 * 32 + 32), "dense10": 64 * 32 * 10 + 10},
    "11pct": WIDE_CONVOLUTIONS
    | {"local3": 64 * (9 * 64 * 64 + 64), "local4": 64 * (9 * 64 * 32 + 32), "dense10": 64 * 32 * 10 + 10},
}


@pytest.mark.parametrize(
    ("net", "total"), [("80sec", 145_578), ("18pct", 89_578), ("13pct", 1_901_386), ("11pct", 3_672_906)]
)
def test_parameters(net: str, total: int) -> None:
    layers = describe_layers(build_cuda_convnet(num_classes=10, crop=32, net=net), (3, 32, 32))
    assert {layer.name: layer.parameters for layer in layers if layer.parameters} == PARAMETERS[net]
    assert sum(layer.parameters for layer in layers) == total


def test_multiply_adds_of_a_local_layer_are_its_weights() -> None:
    layers = {
        layer.name: layer
        for layer in describe_layers(build_cuda_convnet(num_classes=10, crop=24, net="11pct"), (3, 24, 24))
    }
    assert layers["local3"].multiply_adds == 36 * 9 * 64 * 64
    assert layers["conv2"].multiply_adds == 12 * 12 * 64 * 1600
    assert layers["local4"].output_shape == (32, 6, 6)


@pytest.mark.parametrize(
    ("net", "deviations"),
    [
        ("80sec", {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "dense64": 0.1, "dense10": 0.1}),
        ("18pct", {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "dense10": 0.01}),
        ("13pct", {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "dense10": 0.01}),
        ("11pct", {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "dense10": 0.01}),
    ],
)
def test_initial_weights(net: str, deviations: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = build_cuda_convnet(num_classes=10, crop=32, net=net)
    found = {}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear | LocallyConnected):
            found[name] = layer.weight.std().item()
            assert layer.bias is not None
            assert layer.bias.eq(0).all()
            assert layer.weight.abs().max() > 2.5 * deviations[name]  # not truncated
    assert found == pytest.approx(deviations, rel=0.1)


def test_average_pools_leave_the_border_out() -> None:
    pool = build_cuda_convnet(num_classes=10, crop=32, net="80sec").pool2
    image = np.arange(16.0).reshape(4, 4)
    expected = [[image[y : y + 3, x : x + 3].mean() for x in (0, 2)] for y in (0, 2)]
    np.testing.assert_allclose(pool(torch.tensor(image)[None, None])[0, 0], expected)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("crop", [*range(7, 16), 28, 31])
def test_each_net_takes_crops_of_any_size(net: str, crop: int) -> None:
    assert build_cuda_convnet(num_classes=7, crop=crop, net=net)(torch.zeros(1, 3, crop, crop)).shape == (1, 7)


@pytest.mark.parametrize("net", ["80sec", "18pct"])
def test_crops_that_pools_leave_nothing_of_are_refused(net: str) -> None:
    with pytest.raises(UsageError, match=r"6x6 pixels are too few: .* needs 7x7 \(distort\.crop\)"):
        build_model(ModelConfig(name="cuda-convnet", options={"net": net}), num_classes=10, crop=6)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("crop", [24, 32])
def test_each_net_answers_and_learns_from_grey_levels(net: str, crop: int) -> None:
    torch.manual_seed(0)
    model = build_cuda_convnet(num_classes=7, crop=crop, net=net)
    logits = model(torch.randn(4, 3, crop, crop).mul(60).contiguous(memory_format=torch.channels_last))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name


@pytest.mark.parametrize("net", NETS)
def test_presets_hold_the_rates_of_their_table(net: str) -> None:
    recipe = load_preset(f"cuda-convnet-{net}")
    assert recipe.model == ModelConfig(name="cuda-convnet", options={"net": net})
    assert recipe.optimizer.learning_rate == 0.001
    assert recipe.optimizer.rates == {"biases": 0.002}
    assert recipe.optimizer.momentum == 0.9
    assert recipe.distort.standardize == "mean"
    layers = dict(build_model(recipe.model, num_classes=10, crop=recipe.distort.crop).named_children())
    assert recipe.optimizer.weight_decay.keys() <= layers.keys()
    shared = {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004}
    assert (
        recipe.optimizer.weight_decay
        == {
            "80sec": shared | {"dense64": 0.03, "dense10": 0.03},
            "18pct": shared | {"dense10": 1.0},
            "13pct": {"local3": 0.004, "local4": 0.004, "dense10": 0.004},
            "11pct": {"local3": 0.004, "local4": 0.004, "dense10": 0.01},
        }[net]
    )


@pytest.mark.parametrize("options", [{"net": "10pct"}, {"net": ""}, {"nets": "18pct"}])
def test_unknown_nets_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"80sec, 18pct, 13pct, 11pct|no such option"):
        build_model(ModelConfig(name="cuda-convnet", options=options), num_classes=10, crop=32)


def test_initial_loss_is_that_of_a_guess() -> None:
    torch.manual_seed(0)
    for net in ("18pct", "13pct", "11pct"):
        logits = build_cuda_convnet(num_classes=10, crop=32, net=net)(torch.randn(64, 3, 32, 32) * 60)
        assert nn.functional.cross_entropy(logits, torch.arange(64) % 10).item() == pytest.approx(
            math.log(10), rel=0.02
        )
