import numpy as np
import pytest
import torch
from torch import nn

from thumbnet.config import DistortConfig, ModelConfig
from thumbnet.engine import resolve_precision
from thumbnet.errors import DataError, DivergedError
from thumbnet.evaluation.evaluate import EvaluationStoppedError, batch_size_for, evaluate_weights, predict_logits
from thumbnet.evaluation.metrics import compute_metrics
from thumbnet.models import build_model

FP32 = resolve_precision("fp32")
CROP = DistortConfig(crop=8)


def standardized_centres(images: np.ndarray, crop: int) -> np.ndarray:
    """The tutorial's input for evaluation, one picture at a time: [N, C, crop, crop]."""
    edge = (images.shape[1] - crop) // 2
    inputs = []
    for image in images[:, edge : edge + crop, edge : edge + crop].astype(np.float64):
        inputs.append((image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size)))
    return np.stack(inputs).transpose(0, 3, 1, 2)


def linear_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 10))


@pytest.mark.parametrize("batch_size", [1, 7, 20, 21, 500])
def test_every_example_is_evaluated_once_and_in_order(pictures, batch_size):
    dataset, model = pictures(21), linear_model()
    logits, labels = predict_logits(model, dataset, CROP, precision=FP32, batch_size=batch_size)
    assert dataset.served == list(range(21))
    np.testing.assert_array_equal(labels, dataset.labels)
    weight, bias = (parameter.detach().double().numpy() for parameter in model[1].parameters())
    expected = standardized_centres(dataset.images, 8).reshape(21, -1) @ weight.T + bias
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)

    metrics = evaluate_weights(model, dataset, CROP, precision=FP32, batch_size=batch_size)
    oracle = compute_metrics(expected, dataset.labels, dataset.class_names)
    assert (metrics.examples, metrics.accuracy, metrics.top5) == (21, oracle.accuracy, oracle.top5)
    assert metrics.loss == pytest.approx(oracle.loss, abs=1e-5)


def test_an_evaluation_ends_before_the_batch_at_which_it_is_stopped(pictures):
    dataset, model, said = pictures(21), linear_model(), iter([False, False, True])
    with pytest.raises(EvaluationStoppedError):
        evaluate_weights(model, dataset, CROP, precision=FP32, batch_size=4, stopped=lambda: next(said))
    assert dataset.served == list(range(12)), "the third batch is read and not computed"
    assert model.training


@pytest.mark.parametrize(("side", "images"), [(24, 500), (64, 500), (65, 496), (224, 41), (1449, 1)])
def test_a_pass_of_large_pictures_takes_fewer(side, images):
    assert batch_size_for(side) == images


def test_pictures_of_a_pass_follow_from_the_input(pictures):
    passes = []

    class Network(nn.Linear):
        def forward(self, images):
            passes.append(len(images))
            return super().forward(images.mean((2, 3)))

    predict_logits(Network(3, 10), pictures(5), DistortConfig(crop=1024), precision=FP32)
    assert passes == [2, 2, 1]


def test_modes_and_statistics_are_as_before(pictures):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), *linear_model())
    model.train()
    model[0].eval()  # a frozen layer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (predict_logits(model, pictures(9), CROP, precision=FP32)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)  # nothing is dropped at random
    assert [module.training for module in model] == [False, True, True, True]
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_modes_are_as_before_when_the_network_fails(pictures):
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 10)).train()
    with pytest.raises(RuntimeError):
        predict_logits(model, pictures(3), CROP, precision=FP32)
    assert model.training
    assert model[1].training


def test_bf16_gives_nearly_the_logits_of_fp32(pictures):
    torch.manual_seed(1)
    model = build_model(ModelConfig(), num_classes=10, crop=8).to(memory_format=torch.channels_last)
    # The tutorial's initial weights make tiny logits: scaled to the size that a trained network has.
    with torch.no_grad():
        model.softmax_linear.weight *= 30
    exact, fast = (
        predict_logits(model, pictures(40), CROP, precision=resolve_precision(name))[0] for name in ("fp32", "bf16")
    )
    assert exact.std() > 0.1
    assert np.abs(fast - exact).max() < 0.05 * np.abs(exact).max()
    assert fast.dtype == np.float32


def test_empty_data_is_refused(pictures):
    with pytest.raises(DataError, match="no examples"):
        evaluate_weights(linear_model(), pictures(0), CROP, precision=FP32)


def test_weights_that_are_not_finite_are_refused(pictures):
    model = linear_model()
    with torch.no_grad():
        model[1].bias[3] = float("nan")
    with pytest.raises(DivergedError, match="not finite"):
        evaluate_weights(model, pictures(5), CROP, precision=FP32)
