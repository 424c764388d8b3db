import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thumbnet.config import OptimizerConfig, Recipe, load_preset
from thumbnet.data.dataset import Splits
from thumbnet.distributed.exact import team_for
from thumbnet.distributed.place import Place
from thumbnet.distributed.replicas import ALONE, Replicas
from thumbnet.engine import Precision
from thumbnet.errors import DivergedError
from thumbnet.input.pipeline import Batch, TrainingInput
from thumbnet.monitor.health import GradientCheck
from thumbnet.training.optimizers import build_optimizer
from thumbnet.training.state import TrainingState, new_state
from thumbnet.training.step import train_step

FP32 = Precision(name="fp32", why="test")
BF16 = Precision(name="bf16", why="test")


def state_of(recipe: Recipe) -> TrainingState:
    return new_state(recipe, num_classes=10, channels=3)


@pytest.fixture
def batch(recipe: Recipe, splits: Splits) -> Batch:
    with TrainingInput(splits.train, recipe.distort, recipe.input, seed=0) as batches:
        return next(batches)


def weights_of(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.model.named_parameters()}


def test_one_step_is_gradient_descent_on_the_tutorials_loss(recipe: Recipe, batch: Batch) -> None:
    state = state_of(recipe)
    before = weights_of(state)
    loss = F.cross_entropy(state.model(batch.images), batch.labels)
    total = loss + 0.004 / 2 * sum(
        state.model.get_parameter(f"{name}.weight").square().sum() for name in ("local3", "local4")
    )
    gradients = dict(zip(before, torch.autograd.grad(total, list(state.model.parameters())), strict=True))
    result = train_step(state, batch, check=GradientCheck(state.model), precision=FP32)
    assert result.figures[0].item() == pytest.approx(loss.item(), rel=1e-5)
    assert state.step == 1
    for name, value in weights_of(state).items():
        torch.testing.assert_close(value, before[name] - 0.1 * gradients[name], rtol=1e-4, atol=1e-6)


def test_average_follows_the_updated_weights(recipe: Recipe, batch: Batch) -> None:
    state = state_of(recipe)
    assert state.average is not None
    before = weights_of(state)
    train_step(state, batch, check=GradientCheck(state.model), precision=FP32)
    decay = 1 / 10  # (1 + 0) / (10 + 0)
    for name, value in weights_of(state).items():
        expected = decay * before[name] + (1 - decay) * value
        torch.testing.assert_close(state.average.state()[name], expected, rtol=1e-5, atol=1e-7)


def test_accuracy_is_of_the_batch_before_the_update(recipe: Recipe, batch: Batch) -> None:
    state = state_of(recipe)
    with torch.no_grad():
        expected = (state.model(batch.images).argmax(1) == batch.labels).float().mean().item()
    assert train_step(state, batch, check=GradientCheck(state.model), precision=FP32).figures[1].item() == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("precision", [FP32, BF16])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    recipe: Recipe, batch: Batch, value: float, precision: Precision
) -> None:
    state = state_of(recipe)
    for _ in range(2):
        train_step(state, batch, check=GradientCheck(state.model), precision=FP32)
    before, step = weights_of(state), state.step
    assert state.average is not None
    average = {name: tensor.clone() for name, tensor in state.average.state().items()}
    poisoned = Batch(images=batch.images.clone(), labels=batch.labels, indices=batch.indices)
    poisoned.images[3, 1, 5, 5] = value
    with pytest.raises(DivergedError, match="step 3"):
        train_step(state, poisoned, check=GradientCheck(state.model), precision=precision)
    assert state.step == step
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(state).items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in state.average.state().items())


def test_an_infinite_gradient_never_reaches_the_weights(recipe: Recipe, batch: Batch) -> None:
    state = state_of(recipe)
    before = weights_of(state)
    state.model.get_parameter("conv2.weight").register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match=r"conv2\.weight"):
        train_step(state, batch, check=GradientCheck(state.model), precision=FP32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(state).items())


def test_a_refused_step_leaves_the_statistics_of_batch_normalization(recipe: Recipe, batch: Batch) -> None:
    state = state_of(load_preset("quick", {"model.options.widths": [8, 8, 8], "distort.crop": recipe.distort.crop}))
    check = GradientCheck(state.model)
    train_step(state, batch, check=check, precision=FP32)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    poisoned = Batch(images=batch.images * math.nan, labels=batch.labels, indices=batch.indices)
    with pytest.raises(DivergedError, match="step 2"):
        train_step(state, poisoned, check=check, precision=FP32)
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


def test_statistics_that_overflow_refuse_a_step_whose_loss_is_finite(batch: Batch) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(batch.images[0].numel(), 10))
    optimizer = build_optimizer(network, OptimizerConfig(learning_rate=0.1))
    state = TrainingState(model=network, optimizer=optimizer, average=None)
    huge = Batch(images=batch.images * 1e25, labels=batch.labels, indices=batch.indices)
    with pytest.raises(DivergedError, match=r"step 1: .* 0\.running_var of batch normalization not finite \(loss = \d"):
        train_step(state, huge, check=GradientCheck(network), precision=FP32)
    assert torch.equal(network.get_buffer("0.running_var"), torch.ones(3))


class Dropping(nn.Module):
    """Takes down what its dropout let through."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 10)
        self.masks: list[torch.Tensor] = []

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        mask = F.dropout(torch.ones(len(images_NCHW), 3), 0.5, self.training)
        self.masks.append(mask)
        logits: torch.Tensor = self.dense(images_NCHW.mean((2, 3)) * mask)
        return logits


def masks_of(
    batch: Batch, *, steps: int = 2, seed: int = 0, grain: int = 0, place: Place | None = None
) -> torch.Tensor:
    """Return the masks of the first steps, [steps, this replica's images, 3]."""
    network = Dropping()
    optimizer = build_optimizer(network, OptimizerConfig(learning_rate=0.1))
    state = TrainingState(model=network, optimizer=optimizer, average=None, seed=seed)
    replicas = Replicas(place)
    replicas.sum = lambda values: values  # type: ignore[method-assign]
    team = team_for(replicas, network, batch_size=len(batch.labels), grain=grain, seconds=lambda: 0.0)
    mine = Batch(images=batch.images[team.share], labels=batch.labels[team.share], indices=batch.indices[team.share])
    for _ in range(steps):
        torch.rand(7)  # somebody else draws
        train_step(state, mine, check=GradientCheck(network), precision=FP32, team=team)
    return torch.stack(torch.cat(network.masks).split(len(mine.labels)))


def test_what_a_network_draws_follows_from_seed_and_step_alone(batch: Batch) -> None:
    first, second = masks_of(batch)
    assert not torch.equal(first, second)
    assert torch.equal(masks_of(batch), torch.stack([first, second]))
    assert not torch.equal(masks_of(batch, seed=1)[0], first)


def test_a_grain_draws_the_same_on_any_replica_and_another_grain_something_else(batch: Batch) -> None:
    alone = masks_of(batch, grain=12)
    there = masks_of(batch, grain=12, place=Place(rank=1, count=2, local_rank=1, address="", port=0))
    assert torch.equal(there, alone[:, 24:])
    assert not torch.equal(alone[:, :12], alone[:, 12:24])


def test_batches_of_normalization_are_counted_by_step_not_by_grain(batch: Batch) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(10))
    network(batch.images)
    optimizer = build_optimizer(network, OptimizerConfig(learning_rate=0.1))
    state = TrainingState(model=network, optimizer=optimizer, average=None)
    team = team_for(ALONE, network, batch_size=len(batch.labels), grain=7, seconds=lambda: 0.0)
    before = int(network.get_buffer("0.num_batches_tracked"))
    for _ in range(2):
        train_step(state, batch, check=GradientCheck(network), precision=FP32, team=team)
    assert int(network.get_buffer("0.num_batches_tracked")) == before + 2


def test_bf16_gradients_are_those_of_fp32_to_its_rounding(recipe: Recipe, batch: Batch) -> None:
    gradients = {}
    for precision in (FP32, BF16):
        state = state_of(recipe)
        train_step(state, batch, check=GradientCheck(state.model), precision=precision)
        gradients[precision.name] = {
            name: parameter.grad.flatten()
            for name, parameter in state.model.named_parameters()
            if parameter.grad is not None
        }
    for name, reference in gradients["fp32"].items():
        cosine = F.cosine_similarity(gradients["bf16"][name], reference, dim=0).item()
        assert cosine > 0.99, name


def test_the_same_seed_gives_the_same_start(recipe: Recipe) -> None:
    first, second = weights_of(state_of(recipe)), weights_of(state_of(recipe))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert np.any([value.std().item() > 0 for value in first.values()])
