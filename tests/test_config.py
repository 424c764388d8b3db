import math
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.config import (
    DataConfig,
    Recipe,
    load_preset,
    load_recipe,
    preset_names,
    recipe_from_dict,
    recipe_to_dict,
)
from thumbnet.errors import UsageError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_toml(name: str, tmp_path: Path) -> None:
    recipe = load_preset(name)
    assert recipe.preset == name
    path = tmp_path / "recipe.toml"
    path.write_bytes(tomli_w.dumps(recipe_to_dict(recipe)).encode())
    assert load_recipe(path) == recipe


def test_the_classic_preset_holds_the_constants_of_2015() -> None:
    recipe = load_preset("classic")
    assert (recipe.distort.crop, recipe.distort.brightness, recipe.distort.contrast) == (24, 63, (0.2, 1.8))
    assert (recipe.optimizer.learning_rate, recipe.optimizer.momentum) == (0.1, 0)
    assert recipe.optimizer.weight_decay == {"local3": 0.004, "local4": 0.004}
    assert (recipe.schedule.every_epochs, recipe.schedule.factor) == (350, 0.1)
    assert (recipe.input.batch_size, recipe.input.pool, recipe.average.decay) == (128, 0.4, 0.9999)
    assert recipe.data.validation == 0, "a preset that reproduces a published figure trains on all images"


def test_overrides_change_one_value_each() -> None:
    recipe = load_preset("classic", {"optimizer.learning_rate": 1, "optimizer.weight_decay.local3": 0.5, "seed": 7})
    assert recipe.optimizer.learning_rate == 1.0
    assert recipe.optimizer.weight_decay == {"local3": 0.5, "local4": 0.004}
    assert recipe.seed == 7


def test_another_network_leaves_behind_what_the_recipe_says_of_the_layers_of_its_own() -> None:
    overrides = {"model.name": "classic", "optimizer.weight_decay.local3": 0.5, "model.options.initial_std": 0.01}
    quick, recipe = load_preset("quick"), load_preset("quick", overrides)
    assert recipe.model.options == {"initial_std": 0.01}
    assert (recipe.optimizer.rates, recipe.optimizer.freeze_after) == ({}, {})
    assert recipe.optimizer.weight_decay == {"biases": quick.optimizer.weight_decay["biases"], "local3": 0.5}
    assert recipe.optimizer.momentum == quick.optimizer.momentum
    assert load_preset("quick", {"model.name": "speed"}) == quick
    assert load_preset("quick") == quick


def test_epochs_replace_steps_and_the_other_way_round() -> None:
    assert load_preset("classic", {"train.epochs": 2}).train.steps == 0
    assert load_preset("quick", {"train.steps": 2}).train.epochs == 0


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.learning_rat", 0.1, "did you mean 'learning_rate'"),
        ("optimiser.learning_rate", 0.1, "did you mean 'optimizer'"),
        ("optimizer.learning_rate", math.nan, "must be at least 0"),
        ("optimizer.learning_rate", math.inf, "must be at least 0 and finite"),
        ("optimizer.learning_rate", "fast", "expected float"),
        ("optimizer.learning_rate", -0.1, "optimizer.learning_rate is -0.1"),
        ("optimizer.momentum", 1.0, "below 1"),
        ("optimizer.weight_decay.local3", -1.0, "optimizer.weight_decay.local3"),
        ("optimizer.weight_decay", 0.1, "expected"),
        ("optimizer.nesterov", True, "needs optimizer.momentum"),
        ("model.options.widths", date(2024, 1, 1), "model.options.widths is 2024-01-01, expected text, a number"),
        ("model.options.head_std", None, "model.options.head_std is None, expected text, a number"),
        ("model.options.widths", [64, None], "expected text, a number"),
        ("input.batch_size", 0, "at least 1"),
        ("input.batch_size", -4, "at least 1"),
        ("input.batch_size", 12.5, "expected int"),
        ("input.batch_size", True, "expected int"),
        ("input.pool", 1.5, "at most 1"),
        ("distort.flip", "sometimes", "distort.flip is 'sometimes'"),
        ("distort.contrast", [1.8, 0.2], "distort.contrast"),
        ("distort.contrast", [1.8], "distort.contrast"),
        ("distort.crop", 0, "at least 1"),
        ("schedule.points", [[0.0, 1.0]], "rise from 0 to 1"),
        ("schedule.points", [[0.0, float("nan")], [1.0, 0.0]], "a factor of schedule.points is nan"),
        ("schedule.points", [[0.0, 1.0], [1.0, -0.5]], "a factor of schedule.points is -0.5"),
        ("schedule.at_epochs", [130.0, 120.0], "must rise"),
        ("schedule.at_epochs", [-1.0], "at least 0"),
        ("schedule.name", "stairs", "at least one epoch"),
        ("schedule.points", [[0.0, 1.0], [0.7, 1.0], [0.3, 0.0], [1.0, 0.0]], "rise from 0 to 1"),
        ("schedule.resize", [[0.0, 0.5]], "fractions must rise, above 0 and below 1, found [0.0]"),
        ("schedule.resize", [[1.0, 0.5]], "fractions must rise, above 0 and below 1, found [1.0]"),
        ("schedule.resize", [[math.nan, 0.5]], "found [nan]"),
        ("schedule.resize", [[0.5, 0.5], [0.3, 0.75]], "found [0.5, 0.3]"),
        ("schedule.resize", [[0.5, 24]], "a scale of schedule.resize is 24.0: it must be at least 0.1 and at most 1"),
        ("schedule.resize", [0.5, 0.75], "schedule.resize is 0.5, expected tuple"),
        ("schedule.resize", 0.5, "schedule.resize is 0.5, expected"),
        ("average.decay", 1.0, "below 1"),
        ("train.steps", -1, "at least 0"),
        ("train.keep", 0, "at least 1"),
        ("train.precision", "bf61", "did you mean 'bf16'"),
        ("data.validation", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("seed.deep", 1, "expected int"),
        ("data", "cifar10", "data is 'cifar10', expected keys of its own"),
    ],
)
def test_impossible_values_are_refused_by_name(key: str, value: object, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_preset("classic", {key: value})
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_numbers_of_numpy_are_numbers() -> None:
    recipe = load_preset("classic", {"optimizer.learning_rate": np.float64(0.25), "seed": np.int64(3)})
    assert (recipe.optimizer.learning_rate, recipe.seed) == (0.25, 3)
    assert (type(recipe.optimizer.learning_rate), type(recipe.seed)) == (float, int)
    with pytest.raises(UsageError, match="seed"):
        load_preset("classic", {"seed": np.arange(2)})


def test_a_recipe_needs_a_length_and_only_one() -> None:
    with pytest.raises(UsageError, match="length of the training is missing"):
        load_preset("classic", {"train.steps": 0})
    values = recipe_to_dict(load_preset("classic"))
    values["train"] |= {"steps": 5, "epochs": 5.0}
    with pytest.raises(UsageError, match="both set"):
        recipe_from_dict(values)


def test_a_recipe_of_ones_own_goes_by_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "flowers.toml"
    path.write_text("[train]\nsteps = 5\n")
    assert load_recipe(path).preset == "flowers"
    path.write_text('preset = "quick"\n[train]\nsteps = 5\n')
    assert load_recipe(path).preset == "quick"


def test_unknown_presets_are_answered_with_the_closest() -> None:
    with pytest.raises(UsageError, match="did you mean 'classic'"):
        load_preset("clasic")


@pytest.mark.parametrize("content", [b"[data\n", b"\xff\xfe", b"steps = = 3"])
def test_a_recipe_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.toml"):
        load_recipe(path)


def test_another_network_leaves_smaller_pictures_behind() -> None:
    """Not every network takes them; what is asked for beside it stays."""
    values = recipe_to_dict(load_preset("quick", {"schedule.resize": [[0.5, 0.5]]}))
    assert recipe_from_dict(values, {"model.name": "classic"}).schedule.resize == ()
    assert recipe_from_dict(values, {"model.name": "speed"}).schedule.resize == ((0.5, 0.5),)
    asked = {"model.name": "timm/resnet18", "schedule.resize": [[0.25, 0.75]]}
    assert recipe_from_dict(values, asked).schedule.resize == ((0.25, 0.75),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('model = "classic"', "'model' is a value"),
        ("[optimizer]\nweight_decay = 5e-4", "optimizer.weight_decay is 0.0005"),
        ('optimizer = "muon"', "optimizer is 'muon'"),
        ('schedule = "stairs"', "schedule is 'stairs'"),
    ],
)
def test_a_value_in_place_of_a_table_is_told_beside_another_network(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        load_recipe(path, {"model.name": "speed"})


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml"):
        load_recipe(tmp_path / "none.toml")


@given(
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(0, 1e6),
    pool=st.floats(0, 1),
    decay=st.dictionaries(st.text("abc", min_size=1), st.floats(0, 10)),
    points=st.lists(st.floats(0, 9), min_size=2, max_size=5),
)
def test_any_recipe_survives_dictionaries_and_toml(
    seed: int, rate: float, pool: float, decay: dict[str, float], points: list[float]
) -> None:
    import tomllib

    values = recipe_to_dict(Recipe(train=load_preset("classic").train))
    values["seed"] = seed
    values["optimizer"] |= {"learning_rate": rate, "weight_decay": decay}
    values["input"]["pool"] = pool
    values["schedule"]["points"] = [[i / (len(points) - 1), factor] for i, factor in enumerate(points)]
    recipe = recipe_from_dict(values)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    assert recipe_from_dict(tomllib.loads(tomli_w.dumps(recipe_to_dict(recipe)))) == recipe


@pytest.mark.parametrize(("validation", "count"), [(0.0, 0), (0.1, 100), (0.0001, 1), (1.0, 1), (50.0, 50)])
def test_a_share_for_validation_is_a_picture_at_least(validation: float, count: int) -> None:
    assert DataConfig(validation=validation).validation_count(1000) == count
