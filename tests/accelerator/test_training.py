import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from thumbnet import engine
from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import Splits
from thumbnet.data.shapes import draw_shapes
from thumbnet.distributed.exact import team_for
from thumbnet.distributed.replicas import Replicas
from thumbnet.distributed.team import Team
from thumbnet.errors import DivergedError, UsageError
from thumbnet.evaluation.evaluate import predict_logits
from thumbnet.input.distort import prepare
from thumbnet.models import dense
from thumbnet.monitor.console import Console
from thumbnet.monitor.signals import StopSignal
from thumbnet.runs.run import Run
from thumbnet.training import loop
from thumbnet.training.averages import WeightAverage
from thumbnet.training.optimizers import GradientDescent
from thumbnet.training.session import open_training
from thumbnet.training.state import new_state

SMALL = {
    "classic": {},
    "quick": {"model.options.widths": [8, 16, 16], "schedule.resize": [[0.5, 0.75]]},
    "fast": {"model.options.widths": [16, 16, 32]},
}
RUNS = itertools.count()


def recipe_of(preset: str, **changes: object) -> Recipe:
    """Return a preset at a size for tests, which tells and saves at its first and last step alone."""
    short = {"input.batch_size": 20, "train.steps": 8, "train.precision": "fp32", "train.log_every": 100}
    quiet = {"train.summary_every": 0, "train.checkpoint_every_steps": 0, "train.checkpoint_every_s": 0.0}
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return load_preset(preset, {"data.name": "shapes"} | SMALL[preset] | short | quiet | named)


@pytest.fixture(scope="module")
def splits() -> Splits:
    train, test = draw_shapes()
    return Splits(train=train.take(np.arange(130)), validation=test.take(np.arange(40)), test=None)


@pytest.fixture
def train(splits: Splits, tmp_path: Path) -> Callable[[Recipe], Run]:
    """Trains and gives the run."""

    def train(recipe: Recipe) -> Run:
        run = Run.create(tmp_path, recipe, f"run{next(RUNS)}")
        with Console("default", io.StringIO(), run.path / "log.txt") as console:
            training = open_training(run, splits, console, resume=False)
            training.fit(StopSignal(), lambda: None)
        return run

    return train


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = run.checkpoints.latest()
    kept = (("model", checkpoint.model), ("average", checkpoint.average or {}), ("state", checkpoint.state))
    return {f"{part}.{name}": value for part, tensors in kept for name, value in tensors.items()}


@pytest.mark.parametrize("preset", SMALL)
def test_trains_the_weights_of_the_processor(
    accelerator: Any, train: Any, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The device has no kernels, and eight steps make much of how theirs round.
    monkeypatch.setattr(dense, "kernels_take", lambda images: False)
    # Gradient descent for all: Muon turns the last bit of a small gradient into some of its bf16 directions.
    descent = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.02, "optimizer__rates": {}}
    recipe = recipe_of(preset, **descent, train__log_every=3, train__summary_every=4, train__checkpoint_every_steps=5)
    there = train(recipe)
    assert any("_catch_up" in line for line in accelerator.waits)
    accelerator.present = False
    here = train(recipe)
    assert engine.device().type == "cpu"
    expected = tensors_of(here)
    assert tensors_of(there).keys() == expected.keys()
    for name, value in tensors_of(there).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    rows = [[row for row in run.read_metrics() if "loss" in row] for run in (there, here)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [1, 3, 6, 8]
    for key in ("loss", "smoothed_loss", "accuracy", "learning_rate"):
        assert [row[key] for row in rows[0]] == pytest.approx([row[key] for row in rows[1]], rel=1e-3)


def function_of(line: str) -> str:
    """Return which function of thumbnet waited."""
    return line.split(" in ")[1].split(":")[0]


def waits_of(accelerator: Any, train: Any, recipe: Recipe) -> list[str]:
    accelerator.waits.clear()
    train(recipe)
    return list(accelerator.waits)


@pytest.mark.parametrize("preset", SMALL)
def test_waits_no_more_often_for_more_steps(accelerator: Any, train: Any, preset: str) -> None:
    # Whatever waits belongs to the beginning, the first line, the last line, or the checkpoint and its validation.
    few, many = (waits_of(accelerator, train, recipe_of(preset, train__steps=steps)) for steps in (3, 6))
    assert few == many


def test_waits_once_for_the_figures_of_many_steps(accelerator: Any, train: Any) -> None:
    few, many = (
        waits_of(accelerator, train, recipe_of("quick", train__steps=6, train__log_every=every)) for every in (6, 3)
    )
    more = [function_of(line) for line in many]
    for line in few:
        more.remove(function_of(line))
    assert sorted(more) == ["_catch_up", "_report", "_report"]


@pytest.mark.parametrize("leads", [True, False])
def test_every_replica_looks_at_the_figures_at_the_same_steps(
    accelerator: Any, splits: Splits, leads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A divergence that one alone noticed would leave the others waiting for it."""
    looked: list[int] = []
    catch_up = loop.Training._catch_up

    def noted(self: loop.Training) -> loop.Record:
        looked.append(self.state.step)
        return catch_up(self)

    monkeypatch.setattr(loop.Training, "_catch_up", noted)
    run = Run.create(tmp_path, recipe_of("classic", train__summary_every=3), "run")
    with Console("default", io.StringIO(), run.path / "log.txt") as console:
        training = open_training(run, splits, console, resume=False)
        training._leads = leads
        training.fit(StopSignal(), lambda: None)
    assert looked == [1, 4, 7, 8]


def test_a_value_read_in_every_step_would_be_noticed(
    accelerator: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = WeightAverage.update

    def spoiled(self: WeightAverage, step: int) -> None:
        update(self, step)
        self._averages[0].sum().item()

    monkeypatch.setattr(WeightAverage, "update", spoiled)
    few, many = (len(waits_of(accelerator, train, recipe_of("quick", train__steps=steps))) for steps in (3, 6))
    assert many - few == 3


def blow_up(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """Make the update of a step, counted from 0, take the weights out of all bounds."""
    set_rates, steps = loop.set_rates, itertools.count()

    def set_them(optimizer: GradientDescent, *, factor: float, progress: float) -> None:
        set_rates(optimizer, factor=1e30 if next(steps) == at_step else factor, progress=progress)

    monkeypatch.setattr(loop, "set_rates", set_them)


def test_goes_back_to_the_last_line_before_a_figure_that_is_not_finite(
    accelerator: Any, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("quick", train__steps=12, train__log_every=4, train__checkpoint_every_steps=4)
    train(recipe)
    clean = Run.open(sorted(tmp_path.iterdir())[-1])
    blow_up(monkeypatch, 5)
    message = r"step 7: Model diverged with loss = NaN\nthe weights are again those of step 4"
    with pytest.raises(DivergedError, match=message):
        train(recipe)
    broken = Run.open(sorted(tmp_path.iterdir())[-1])
    assert broken.checkpoints.steps()[-1] == 4
    kept = [{p.name: p.read_bytes() for p in run.checkpoints.path(4).glob("*.safetensors")} for run in (clean, broken)]
    assert kept[0] == kept[1]


def test_a_checkpoint_in_between_looks_at_the_figures_first(
    accelerator: Any, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blow_up(monkeypatch, 2)
    with pytest.raises(DivergedError, match=r"step 4: .*\n.* those of step 2"):
        train(recipe_of("classic", train__checkpoint_every_steps=2))
    run = Run.open(next(tmp_path.iterdir()))
    assert run.checkpoints.steps() == [0, 2]
    assert all(value.isfinite().all() for name, value in tensors_of(run).items() if name != "state.rng.torch")


def test_an_evaluation_reads_once(accelerator: Any, splits: Splits) -> None:
    recipe = recipe_of("classic")
    model = new_state(recipe, num_classes=10, channels=3).model
    accelerator.waits.clear()
    logits_NC, _ = predict_logits(
        model, splits.train, recipe.distort, precision=engine.resolve_precision("fp32"), batch_size=50
    )
    assert [function_of(line) for line in accelerator.waits] == ["send"] * 3 + ["predict_logits"]
    accelerator.present = False
    images_NHWC, _ = splits.train.gather(np.arange(130))
    expected = model.to("cpu").eval()(prepare(images_NHWC, recipe.distort))
    np.testing.assert_allclose(logits_NC, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_replicas_read_their_votes_without_waiting(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[torch.Tensor] = []

    class Work:
        def wait(self) -> None:
            pass

    def all_reduce(values: torch.Tensor, *, async_op: bool) -> Work:
        exchanged.append(values)
        return Work()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.Tensor, "double", torch.Tensor.float)  # this device has no float64, those of NCCL have
    replicas = Replicas()
    replicas.count = 2
    team = Team(replicas, torch.nn.Linear(1, 1), batch_size=8, seconds=lambda: 12.0)
    team.stop(15)
    loss, hits = torch.tensor(3.0).to(engine.device()), torch.tensor([True, False]).to(engine.device())
    accelerator.waits.clear()
    team.begin(loss, hits)
    figures = team.finish()
    assert (team.stop(None), team.seconds()) == (15, 12.0)
    assert accelerator.waits == []
    assert [values.device.type for values in exchanged] == [engine.device().type, "cpu"]
    assert (figures.loss.item(), figures.accuracy.item()) == (1.5, 0.125)  # the part that is this replica's


def test_exact_sums_are_refused_where_there_is_no_float64(accelerator: Any) -> None:
    model = torch.nn.Linear(1, 1).to(engine.device())
    with pytest.raises(UsageError, match="float64, which pretend lacks"):
        team_for(Replicas(), model, batch_size=8, grain=2, seconds=lambda: 0.0)
