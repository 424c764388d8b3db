import pytest
import torch

from thumbnet.config import OptimizerConfig
from thumbnet.errors import UsageError
from thumbnet.models.classic import build_classic
from thumbnet.training.optimizers import build_optimizer, decay_of, decay_terms

DECAY = {"local3": 0.004, "local4": 0.004}


def test_weight_decay_is_the_gradient_of_its_loss_term() -> None:
    torch.manual_seed(0)
    model = build_classic(num_classes=10, crop=24)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1.0, weight_decay=DECAY))
    term = sum(0.004 / 2 * model.get_submodule(name).weight.square().sum() for name in DECAY)
    weight = model.get_submodule("local3").weight
    (gradient,) = torch.autograd.grad(term, weight)
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(before - weight.detach(), gradient)
    assert sum(decay_terms(model, DECAY).values()).item() == pytest.approx(
        sum(0.004 / 2 * model.get_submodule(name).weight.square().sum().item() for name in DECAY)
    )


def test_the_tutorials_first_loss() -> None:
    """ln 10 for the ten classes and the initial decay: the 4.68 of the tutorial's first line, to sampling noise."""
    torch.manual_seed(0)
    terms = decay_terms(build_classic(num_classes=10, crop=24), DECAY)
    assert sum(terms.values()).item() + 2.3026 == pytest.approx(4.68, abs=0.02)


def test_biases_and_undecayed_layers_are_left_alone() -> None:
    model = build_classic(num_classes=10, crop=24)
    decays = {name: decay_of(name, parameter, DECAY) for name, parameter in model.named_parameters()}
    assert {name for name, decay in decays.items() if decay} == {"local3.weight", "local4.weight"}
    assert decay_of("conv1.weight", model.get_parameter("conv1.weight"), {"default": 0.5}) == 0.5
    assert decay_of("conv1.bias", model.get_parameter("conv1.bias"), {"default": 0.5}) == 0


def test_momentum_is_nesterovs_on_request() -> None:
    """Two steps of a constant gradient g at rate r: plain momentum moves r g (2 + m), Nesterov r g (2 + 2m + m^2)."""
    for nesterov, expected in ((False, 2.9), (True, 2 + 1.8 + 0.81)):
        model = torch.nn.Linear(1, 1, bias=False)
        start = model.weight.item()
        config = OptimizerConfig(learning_rate=0.1, momentum=0.9, nesterov=nesterov)
        optimizer = build_optimizer(model, config)
        for _ in range(2):
            model.weight.grad = torch.ones(1, 1)
            optimizer.step()
        assert start - model.weight.item() == pytest.approx(0.1 * expected, rel=1e-5)


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'local3'"):
        build_optimizer(build_classic(num_classes=10, crop=24), OptimizerConfig(weight_decay={"locl3": 0.1}))
