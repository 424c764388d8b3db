import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from thumbnet.errors import DivergedError
from thumbnet.monitor.health import GradientCheck, SpikeDetector, check_late


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(3, 4))
    model.add_module("second", nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def checked(model: nn.Module, loss: float) -> list[float]:
    """Return loss, accuracy and norm of step 7, after they were found good."""
    check = GradientCheck(model)
    figures = check.measure(torch.tensor(loss), torch.tensor(0.25))
    check.check(7, figures)
    values: list[float] = figures.tolist()
    return values


def test_returns_loss_accuracy_and_the_norm_over_all_gradients(model: nn.Module) -> None:
    flat = np.concatenate([parameter.grad.numpy().ravel() for parameter in model.parameters()])
    loss, accuracy, norm = checked(model, 1.5)
    assert (loss, accuracy) == (1.5, 0.25)
    assert norm == pytest.approx(np.sqrt((flat.astype(np.float64) ** 2).sum()), rel=1e-6)


def test_takes_bf16_losses_and_gradients(model: nn.Module) -> None:
    exact = checked(model, 1.5)
    figures = GradientCheck(model.bfloat16()).measure(torch.tensor(1.5, dtype=torch.bfloat16), torch.tensor(0.25))
    assert figures.tolist() == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("value", "spelt"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_refuses_a_loss_that_is_not_finite(model: nn.Module, value: float, spelt: str) -> None:
    with pytest.raises(DivergedError, match=f"step 7: Model diverged with loss = {spelt}\n"):
        checked(model, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["first.weight", "second.bias"])
def test_names_the_gradient_that_is_not_finite(model: nn.Module, name: str, value: float) -> None:
    gradient = model.get_parameter(name).grad
    gradient.view(-1)[-1] = value
    with pytest.raises(DivergedError, match=rf"step 7: .* 1 of {gradient.numel()} values of the gradient of {name}"):
        checked(model, 1.5)


def test_huge_finite_gradients_are_not_called_infinite(model: nn.Module) -> None:
    model.get_parameter("first.bias").grad.fill_(1e30)
    _, _, norm = checked(model, 1.5)
    assert norm == pytest.approx(2e30)


def test_parameters_without_gradient_are_left_out(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    assert checked(model, 1.5) == [1.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [(math.nan, 1.0, "loss = NaN"), (math.inf, math.nan, "loss = inf"), (1.5, math.inf, "norm of .* statistics = inf")],
)
def test_refuses_late_what_is_not_finite(loss: float, norm: float, what: str) -> None:
    with pytest.raises(
        DivergedError, match=f"step 7: Model diverged with {what}\nthe weights are again those of step 5"
    ):
        check_late(7, loss, norm, 5)


def test_lets_pass_late_what_is_finite() -> None:
    check_late(7, 1e30, 1e30, 5)


def test_weights_stay_when_the_step_is_refused(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.get_parameter("second.weight").grad[0, 0] = math.nan
    with pytest.raises(DivergedError):
        checked(model, 1.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def normalized() -> nn.Module:
    """A network with batch normalization, after a backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(5, 3)).square().sum().backward()
    return model


def test_finite_statistics_leave_the_norm_alone_to_the_bit(normalized: nn.Module) -> None:
    flat = torch.stack(torch._foreach_norm([parameter.grad for parameter in normalized.parameters()]))
    assert checked(normalized, 1.5)[2] == torch.linalg.vector_norm(flat).item()
    normalized.get_buffer("1.running_var").fill_(3e38)
    assert checked(normalized, 1.5)[2] == torch.linalg.vector_norm(flat).item()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_names_the_running_statistic_that_is_not_finite(normalized: nn.Module, value: float) -> None:
    normalized.get_buffer("1.running_var")[2] = value
    with pytest.raises(DivergedError, match=r"step 7: Model diverged with 1\.running_var of batch normalization"):
        checked(normalized, 1.5)


def test_a_refused_step_leaves_the_statistics_as_they_were(normalized: nn.Module) -> None:
    check = GradientCheck(normalized)
    check.remember()
    before = {name: tensor.clone() for name, tensor in normalized.state_dict().items()}
    normalized(torch.randn(5, 3))
    assert not torch.equal(normalized.get_buffer("1.running_mean"), before["1.running_mean"])
    with pytest.raises(DivergedError):
        check.check(7, check.measure(torch.tensor(math.nan), torch.tensor(0.25)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in normalized.state_dict().items())


def feed(detector: SpikeDetector, losses: np.ndarray, start: int = 0) -> list[str]:
    lines = (detector.update(start + i, float(loss)) for i, loss in enumerate(losses))
    return [line for line in lines if line]


def test_ordinary_training_has_no_spikes() -> None:
    steps = np.arange(3000)
    losses = 0.3 + 2 * np.exp(-steps / 500) + np.random.default_rng(0).normal(0, 0.1, steps.size)
    assert feed(SpikeDetector(), losses) == []


def test_losses_of_single_pictures_are_no_spikes() -> None:
    assert feed(SpikeDetector(), np.random.default_rng(0).exponential(1.0, 3000)) == []


def test_a_spike_is_told_once_when_it_begins_and_again_when_it_returns() -> None:
    detector = SpikeDetector()
    noise = np.random.default_rng(0).normal(1.0, 0.05, 300)
    assert feed(detector, noise) == []
    (line,) = feed(detector, np.array([9.0, 8.0, 7.0]), start=300)
    assert re.fullmatch(r"step 300: loss spiked to 9, recent mean (1\.00|0\.99)\d*", line)
    assert feed(detector, noise[:20], start=303) == []
    assert len(feed(detector, np.array([9.0]), start=400)) == 1


def test_the_falling_losses_of_the_first_steps_are_no_spikes() -> None:
    assert feed(SpikeDetector(), np.array([2.3, 40.0, 12.0, 2.4])) == []
