import time

import pytest

from thumbnet.config import Recipe, recipe_from_dict, recipe_to_dict
from thumbnet.errors import UsageError
from thumbnet.training.progress import Length, Window, length_of


def changed(recipe: Recipe, **overrides: object) -> Recipe:
    return recipe_from_dict(recipe_to_dict(recipe), {key.replace("__", "."): value for key, value in overrides.items()})


def test_length_of_a_training(recipe: Recipe) -> None:
    assert length_of(changed(recipe, train__epochs=3.0), 1000).steps == 63  # 3 x 1000 / 48 = 62.5
    assert length_of(changed(recipe, train__epochs=0.1, input__batch_size=100), 1000).steps == 1
    assert length_of(changed(recipe, train__epochs=1e-9), 1000).steps == 1
    assert length_of(changed(recipe, train__steps=0, train__time_limit_s=5.0), 1000).steps is None
    with pytest.raises(UsageError, match="--batch-size 48 is larger than the training set"):
        length_of(recipe, 47)


@pytest.fixture
def growing(recipe: Recipe) -> Length:
    """Of 100 steps, 50 on pictures of half the side, 25 of three quarters, 25 as they are, of 24 pixels."""
    return length_of(changed(recipe, train__steps=100, schedule__resize=[[0.5, 0.5], [0.75, 0.75]]), 1000)


@pytest.mark.parametrize(("steps", "side"), [(0, 12), (49, 12), (50, 18), (74, 18), (75, 24), (99, 24), (100, 24)])
def test_a_size_ends_with_the_step_that_is_named(growing: Length, steps: int, side: int) -> None:
    assert growing.side(growing.done(steps, 0.0)) == side


@pytest.mark.parametrize(
    ("done", "factor"),
    [
        # By hand: what is left of each phase times its pixels, over what is left times the pixels of the last step.
        (0.0, (0.5 * 144 + 0.25 * 324 + 0.25 * 576) / 144),
        (0.5, (0.25 * 324 + 0.25 * 576) / (0.5 * 144)),
        (0.6, (0.15 * 324 + 0.25 * 576) / (0.4 * 324)),
        (0.9, 1.0),
        (1.0, 1.0),
    ],
)
def test_steps_to_come_take_longer_by_their_pixels(growing: Length, done: float, factor: float) -> None:
    assert growing.slowdown(done) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "done", "steps"),
    [
        (30, 0.1, 202),  # 0.5 / 144 + 0.25 / 324 + 0.25 / 576 in all, 0.1 / 144 so far: 6.74 times as many
        (100, 0.5, 135),
        (120, 0.9, 125),
        (130, 1.0, 130),
    ],
)
def test_fewer_steps_fit_into_the_time_of_larger_pictures(recipe: Recipe, step: int, done: float, steps: int) -> None:
    limited = changed(recipe, train__steps=0, train__time_limit_s=9.0, schedule__resize=[[0.5, 0.5], [0.75, 0.75]])
    assert length_of(limited, 1000).steps_by(step, done) == steps


@pytest.mark.parametrize(("step", "done", "steps"), [(1, 0.01, 100), (33, 0.33, 100), (99, 0.99, 100), (7, 1.0, 7)])
def test_steps_that_time_decides_on(recipe: Recipe, step: int, done: float, steps: int) -> None:
    assert length_of(changed(recipe, train__steps=0, train__time_limit_s=9.0), 1000).steps_by(step, done) == steps
    assert length_of(recipe, 1000).steps_by(step, min(done, 0.5)) == 30


def test_pictures_of_one_size_take_as_long_as_before(recipe: Recipe) -> None:
    assert [length_of(recipe, 1000).slowdown(done) for done in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]


def test_the_time_left_knows_of_larger_pictures(growing: Length, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    window = Window()
    for _ in range(50):
        window.add(accuracy=0.5)
    now = 5.0
    facts = {"batch_size": 48, "loss": 1.0, "smoothed_loss": 1.0, "rate": 0.1, "wait_s": 0.0}
    report = window.report(step=50, length=growing, done=0.5, label=0, logits=(), **facts)
    assert report.eta_s == pytest.approx(25 * 0.1 * (324 + 576) / 144)
