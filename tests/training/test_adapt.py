import inspect

import pytest

from thumbnet.config import load_preset, preset_names
from thumbnet.models import MODELS
from thumbnet.training.adapt import fit_to_examples, preset_for


def test_a_data_set_that_fills_a_batch_changes_nothing():
    for name in preset_names():
        recipe = load_preset(name)
        assert fit_to_examples(recipe, recipe.input.batch_size) == (recipe, None)


@pytest.mark.parametrize(("examples", "batch"), [(499, 62), (200, 25), (60, 16), (7, 7), (1, 1)])
def test_a_smaller_one_gets_smaller_batches_and_as_many_steps_as_learning_takes(examples: int, batch: int):
    recipe, told = fit_to_examples(load_preset("quick"), examples)
    assert recipe.input.batch_size == batch
    assert (recipe.train.steps, recipe.train.epochs) == (200, 0)
    assert told is not None
    assert told.startswith(f"{examples} images to train on do not fill a batch of 500: batches of {batch}, 200 steps (")


def test_rates_of_gradient_descent_follow_the_batch_and_muons_does_not():
    before, (after, _) = load_preset("quick"), fit_to_examples(load_preset("quick"), 400)
    assert after.optimizer.learning_rate == before.optimizer.learning_rate
    assert after.optimizer.rates == pytest.approx({name: rate / 10 for name, rate in before.optimizer.rates.items()})
    descent, _ = fit_to_examples(load_preset("classic"), 64)
    assert (descent.input.batch_size, descent.optimizer.learning_rate) == (16, pytest.approx(0.1 / 8))
    assert descent.train == load_preset("classic").train


def test_what_was_asked_for_stays():
    overrides = {"input.batch_size": 300, "train.epochs": 3, "optimizer.rates.head": 5.0, "optimizer.learning_rate": 1}
    recipe = load_preset("quick", overrides)
    assert fit_to_examples(recipe, 50, overrides) == (recipe, None)
    del overrides["input.batch_size"]
    fitted, _ = fit_to_examples(recipe, 50, overrides)
    assert (fitted.train.epochs, fitted.train.steps) == (3, 0)
    assert fitted.optimizer.rates["head"] == 5
    assert fitted.optimizer.rates["biases"] < recipe.optimizer.rates["biases"]
    table, _ = fit_to_examples(recipe, 50, ["optimizer.rates"])
    assert table.optimizer.rates == recipe.optimizer.rates
    sgd = load_preset("classic", {"optimizer.learning_rate": 1})
    assert fit_to_examples(sgd, 50, ["optimizer.learning_rate"])[0].optimizer.learning_rate == 1


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        (None, "quick"),
        ("classic", "classic"),
        ("speed", "quick"),
        ("timm/resnet18", "timm"),
        ("cuda-convnet", "cuda-convnet-18pct"),
    ],
)
def test_the_preset_of_a_network(model: str | None, preset: str):
    assert preset_for(model) == preset


def test_the_network_built_by_default_is_that_of_its_preset() -> None:
    default = inspect.signature(MODELS["cuda-convnet"]).parameters["net"].default
    assert load_preset(preset_for("cuda-convnet")).model.options == {"net": default}
