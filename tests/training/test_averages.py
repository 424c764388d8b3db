import numpy as np
import torch
from torch import nn

from thumbnet.training.averages import WeightAverage


def test_follows_tensorflows_formula() -> None:
    """average <- d average + (1 - d) value with d = min(decay, (1 + step) / (10 + step)), in NumPy."""
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.6)
    expected = model.weight.detach().numpy().astype(np.float64)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3, generator=generator))
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().numpy()
    np.testing.assert_allclose(average.state()["weight"].numpy(), expected, rtol=1e-5)


def test_is_a_copy_that_is_not_trained() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    with torch.no_grad():
        model.weight.zero_()
    assert average.state()["weight"].abs().sum() > 0


def test_averages_statistics_and_leaves_counters() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.5)
    model(torch.randn(8, 2) + 3)
    average.update(1000)
    assert torch.allclose(average.state()["running_mean"], model.running_mean / 2)
    assert average.state()["num_batches_tracked"] == 0
