import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from thumbnet import engine
from thumbnet.config import Recipe, load_preset, recipe_from_dict, recipe_to_dict
from thumbnet.data.dataset import Splits
from thumbnet.errors import CheckpointError, DivergedError, UsageError
from thumbnet.input.pipeline import Batch
from thumbnet.monitor.neighbours import Neighbours
from thumbnet.runs.checkpoint import Checkpoint, read_manifest
from thumbnet.runs.facts import write_facts
from thumbnet.runs.run import Run
from thumbnet.training import loop
from thumbnet.training.loop import Outcome
from thumbnet.training.progress import TrainClock
from thumbnet.training.session import resumed_recipe, start_run
from thumbnet.training.state import TrainingState
from thumbnet.training.step import StepResult, train_step
from thumbnet.training.whole import Options, train_on


def changed(recipe: Recipe, **overrides: object) -> Recipe:
    return recipe_from_dict(recipe_to_dict(recipe), {key.replace("__", "."): value for key, value in overrides.items()})


LOOKS = 2
"""At a stop in one validation: it is a batch, of raw and averaged weights."""

Train = Callable[..., Outcome]
Bytes = Callable[[Run], dict[str, bytes]]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_stopped_and_resumed_training_is_the_same_to_the_bit(
    train: Train, newest_bytes: Bytes, recipe: Recipe, tmp_path: Path, momentum: float
) -> None:
    recipe = changed(recipe, optimizer__momentum=momentum)
    whole = Run.create(tmp_path, recipe, "whole")
    train(whole)
    parts = Run.create(tmp_path, recipe, "parts")
    for resume, steps in ((False, 7), (True, 6), (True, 9)):
        assert train(parts, resume=resume, stop_after=steps).stopped_by == 15
    assert train(parts, resume=True).stopped_by is None
    assert newest_bytes(parts) == newest_bytes(whole)
    steps_of = [[row["step"] for row in run.read_metrics() if "loss" in row] for run in (whole, parts)]
    assert steps_of[0] == steps_of[1] == [1, 5, 10, 15, 20, 25, 30]
    losses = [[row["smoothed_loss"] for row in run.read_metrics() if "loss" in row] for run in (whole, parts)]
    assert losses[0] == losses[1]


def test_a_longer_training_goes_on_from_a_finished_one(
    train: Train, newest_bytes: Bytes, recipe: Recipe, tmp_path: Path
) -> None:
    whole = Run.create(tmp_path, recipe, "whole")
    train(whole)
    short = Run.create(tmp_path, changed(recipe, train__steps=12), "short")
    train(short)
    with pytest.raises(UsageError, match="has finished"):
        resumed_recipe(short, {})
    short.change_recipe(resumed_recipe(short, {"train.steps": 30}))
    train(short, resume=True)
    assert newest_bytes(short) == newest_bytes(whole)


def speed_recipe(**overrides: object) -> Recipe:
    """A short training of a speed network, as narrow as its kernels take it."""
    short = {"data.name": "shapes", "input.batch_size": 48, "train.steps": 12, "train.precision": "fp32"}
    narrow = {"model.options.widths": [32, 32, 64], "train.summary_every": 0}
    return changed(load_preset("quick", short | narrow), **overrides)


def test_pictures_grow_on_the_way_the_same_to_the_bit_after_a_resume(
    train: Train, newest_bytes: Bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []

    def noted(state: TrainingState, batch: Batch, **arguments: object) -> StepResult:
        sides.append(batch.images.shape[-1])
        return train_step(state, batch, **arguments)

    monkeypatch.setattr(loop, "train_step", noted)
    recipe = speed_recipe(schedule__resize=[[0.25, 0.5], [0.5, 0.75]])
    whole = Run.create(tmp_path, recipe, "whole")
    train(whole)
    assert sides == [16] * 3 + [24] * 3 + [32] * 6
    parts = Run.create(tmp_path, recipe, "parts")
    for resume, steps in ((False, 2), (True, 4), (True, 3)):
        assert train(parts, resume=resume, stop_after=steps).stopped_by == 15
    train(parts, resume=True)
    assert sides[12:] == sides[:12]
    assert newest_bytes(parts) == newest_bytes(whole)
    plain = Run.create(tmp_path, speed_recipe(schedule__resize=[]), "plain")
    train(plain)
    assert newest_bytes(plain) != newest_bytes(whole)


def test_tensorboards_graph_is_of_the_size_that_pictures_grow_to(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Size] = []
    monkeypatch.setattr(loop.Summaries, "graph", lambda _, model, example: seen.append(example.shape))
    recipe = speed_recipe(schedule__resize=[[0.5, 0.5]], train__summary_every=1, train__steps=2)
    train(Run.create(tmp_path, recipe, "run"))
    assert seen == [(1, 3, 32, 32)]


def test_a_network_of_one_size_is_refused_smaller_pictures(recipe: Recipe, splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'classic' does not train on 12x12 on the way to 24x24") as caught:
        start_run(changed(recipe, schedule__resize=[[0.5, 0.5]]), tmp_path, "run", lambda _: splits)
    assert "--set 'schedule.resize=[]'" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    train: Train, newest_bytes: Bytes, recipe: Recipe, splits: Splits, tmp_path: Path
) -> None:
    whole = Run.create(tmp_path, recipe, "whole")
    train(whole)
    short = Run.create(tmp_path, changed(recipe, train__steps=12), "short")
    train(short)
    write_facts(short.path, splits)
    (short.checkpoints.path(12) / "manifest.json").write_text("{")
    short.change_recipe(resumed_recipe(short, {"train.steps": 30}))
    train(short, resume=True)
    assert newest_bytes(short) == newest_bytes(whole)


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(
    train: Train, recipe: Recipe, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path, changed(recipe, data__name="shapes", train__steps=6), "run")
    train(run)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file() and path.name != "log.txt"}
    assert "result.json" in before

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("more replicas than grains")

    monkeypatch.setattr(loop, "team_for", refuse)
    monkeypatch.setattr("thumbnet.training.whole.load_splits", lambda *_, **__: splits)
    monkeypatch.setattr("thumbnet.training.whole.check_facts", lambda *_: None)
    with pytest.raises(UsageError, match="more replicas"):
        train_on(Run.open(run.path), {"train.steps": 12}, Options(quiet=True))
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file() and path.name != "log.txt"}
    assert {name: after.get(name) for name in before} == before


def test_a_resume_may_not_change_what_a_step_computes(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, recipe, "run")
    assert resumed_recipe(run, {"train.log_every": 3, "seed": recipe.seed}).train.log_every == 3
    for key, value in {"optimizer.learning_rate": 0.2, "seed": 5, "optimizer.weight_decay.local3": 1.0}.items():
        with pytest.raises(UsageError, match=key):
            resumed_recipe(run, {key: value})


def test_a_recipe_edited_by_hand_is_noticed(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, recipe, "run")
    train(run, stop_after=3)
    path = run.path / "recipe.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.1", "learning_rate = 0.3"))
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate is 0\.1 in this run and cannot become 0\.3"):
        train(Run.open(run.path), resume=True)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    train: Train, newest_bytes: Bytes, recipe: Recipe, tmp_path: Path
) -> None:
    whole = Run.create(tmp_path, recipe, "whole")
    train(whole)
    run = Run.create(tmp_path, recipe, "run")
    train(run, stop_after=25 + 2 * LOOKS)
    damaged = run.checkpoints.path("latest") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    train(run, resume=True)
    assert "step-00000025" in (run.path / "log.txt").read_text()
    assert newest_bytes(run) == newest_bytes(whole)


def test_resuming_without_a_checkpoint_is_an_error(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, recipe, "run")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(run, resume=True)


def test_the_loss_is_of_the_weights_before_the_update(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    losses = []
    for rate in (1e-6, 10.0):
        run = Run.create(tmp_path, changed(recipe, optimizer__learning_rate=rate, train__steps=1), f"rate-{rate}")
        train(run)
        losses.append(run.read_metrics()[0]["loss"])
    assert losses[0] == losses[1]


def test_divergence_stops_with_the_weights_before_it_saved(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, changed(recipe, optimizer__learning_rate=1e30), "run")
    with pytest.raises(DivergedError, match=r"step \d+: Model diverged"):
        train(run)
    newest = run.checkpoints.latest()
    assert all(tensor.isfinite().all() for tensor in newest.model.values())
    assert not run.finished


def test_divergence_leaves_the_running_statistics_before_it_too(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    options = {"model__name": "speed", "model__options": {"widths": [8, 8, 8]}, "optimizer__weight_decay": {}}
    run = Run.create(tmp_path, changed(recipe, **options, optimizer__learning_rate=1e20), "run")
    with pytest.raises(DivergedError, match=r"step \d+: Model diverged"):
        train(run)
    newest = run.checkpoints.latest()
    assert newest.step > 0
    assert all(tensor.isfinite().all() for tensor in newest.model.values())


def test_a_divergence_is_told_though_the_last_step_cannot_be_saved(
    train: Train, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path, changed(recipe, optimizer__learning_rate=1e30), "run")
    save = run.checkpoints.save

    def refuse(checkpoint: Checkpoint, *rest: object, **named: object) -> Path:
        if checkpoint.step:
            raise CheckpointError("a weight is not finite")
        return save(checkpoint, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(run.checkpoints, "save", refuse)
    with pytest.raises(DivergedError, match=r"step \d+: Model diverged"):
        train(run)
    assert "warning: a weight is not finite" in (run.path / "log.txt").read_text()


def test_a_stop_saves_without_validating(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, recipe, "run")
    train(run, stop_after=13 + LOOKS)
    assert run.checkpoints.steps()[-1] == 13
    assert [row["step"] for row in run.read_metrics() if "validation_average" in row] == [10]


@pytest.mark.parametrize(("looks", "step"), [(10, 10), (31 + 2 * LOOKS, 30)])
def test_a_stop_ends_a_validation_with_which_the_resume_begins(
    train: Train, newest_bytes: Bytes, recipe: Recipe, tmp_path: Path, looks: int, step: int
) -> None:
    recipe = changed(recipe, train__summary_every=12)
    whole, parts = (Run.create(tmp_path, recipe, name) for name in ("whole", "parts"))
    train(whole)
    outcome = train(parts, stop_after=looks)
    assert (outcome.steps, outcome.stopped_by) == (step, 15)
    assert parts.checkpoints.steps()[-1] == step
    assert read_manifest(parts.checkpoints.path(step)).metric is None
    assert train(parts, resume=True, stop_after=1).stopped_by == 15, "again, of the averaged weights"
    assert train(parts, resume=True).session_steps == 30 - step
    assert newest_bytes(parts) == newest_bytes(whole)
    keys = ("step", "loss", "validation_raw", "validation_average")
    told, expected = ([[row.get(key) for key in keys] for row in run.read_metrics()] for run in (parts, whole))
    assert told == expected
    assert parts.checkpoints.best_step() == whole.checkpoints.best_step()
    assert curves_of(parts)["accuracy/validation raw"] == [9, 19, 29]


@pytest.mark.parametrize("limit_s", [20.0, 21.0, 22.0, 23.0])
def test_the_step_that_time_ends_with_has_its_line(
    train: Train, recipe: Recipe, tmp_path: Path, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ticking(TrainClock):
        """Goes on by a second whenever it is read."""

        def seconds(self) -> float:
            self._before_s += 1
            return self._before_s

    monkeypatch.setattr(loop, "TrainClock", Ticking)
    run = Run.create(tmp_path, changed(recipe, train__steps=100, train__time_limit_s=limit_s), "run")
    outcome = train(run)
    lines = [row["step"] for row in run.read_metrics() if "loss" in row]
    assert 5 < outcome.steps < 30
    assert lines[-1] == outcome.steps
    assert f"step {outcome.steps}/{outcome.steps} " in (run.path / "log.txt").read_text()


def curves_of(run: Run) -> dict[str, list[int]]:
    """Return the steps that TensorBoard shows of each number."""
    found = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_a_point_at_each_line_and_the_rest_where_it_is_due(
    train: Train, recipe: Recipe, tmp_path: Path
) -> None:
    run = Run.create(tmp_path, changed(recipe, train__summary_every=12), "run")
    train(run)
    curves = curves_of(run)
    assert curves["loss/total"] == [0, 4, 9, 12, 14, 19, 24, 29]
    assert curves["sparsity/conv1"] == [0, 12, 24]
    assert curves["accuracy/validation raw"] == [9, 19, 29]


def test_a_resume_leaves_what_tensorboard_shows_of_the_validation_before(
    train: Train, recipe: Recipe, tmp_path: Path
) -> None:
    run = Run.create(tmp_path, changed(recipe, train__summary_every=12), "run")
    train(run, stop_after=10 + LOOKS)
    train(run, resume=True)
    assert curves_of(run)["accuracy/validation raw"] == [9, 19, 29]


def test_each_step_is_reported_where_it_is_due(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, recipe, "run")
    outcome = train(run)
    assert outcome.steps == 30
    assert outcome.epochs == pytest.approx(30 * 48 / 1000)
    assert run.checkpoints.steps() == [10, 20, 30] or len(run.checkpoints.steps()) == 4
    validations = [row for row in run.read_metrics() if "validation_average" in row]
    assert [row["step"] for row in validations] == [10, 20, 30]
    lines = (run.path / "log.txt").read_text().splitlines()
    assert sum(line.startswith("step") and "img/s" in line for line in lines) == 7


def test_the_best_checkpoint_is_chosen_by_validation_and_survives(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, changed(recipe, train__keep=1, train__checkpoint_every_steps=3), "run")
    train(run)
    rows = {row["step"]: row["validation_average"] for row in run.read_metrics() if "validation_average" in row}
    best = max(rows, key=lambda step: (rows[step], -step))
    assert run.checkpoints.best_step() == best
    assert set(run.checkpoints.steps()) == {best, 30}


def test_a_time_limit_ends_the_training_and_its_schedule(train: Train, recipe: Recipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path, changed(recipe, train__steps=0, train__time_limit_s=1.0), "run")
    outcome = train(run)
    assert outcome.train_seconds >= 1.0
    assert outcome.steps > 1
    assert run.finished


def test_what_is_written_does_not_change_what_is_trained(
    train: Train, newest_bytes: Bytes, recipe: Recipe, tmp_path: Path
) -> None:
    plain = Run.create(tmp_path, recipe, "plain")
    train(plain)
    told = Run.create(tmp_path, changed(recipe, train__summary_every=4, train__checkpoint_every_steps=7), "told")
    train(told)
    assert newest_bytes(plain) == newest_bytes(told)
    assert list((told.path / "tensorboard").iterdir())


def test_others_are_counted_on_all_cores_though_a_training_holds_each_thread_on_one(
    train: Train, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores: list[int] = []

    class Seen(Neighbours):
        def busy_cores(self) -> float | None:
            cores.append(self.cores)
            return 0.25

    monkeypatch.setattr(loop, "Neighbours", Seen)
    torch.set_num_threads(engine.visible_cores())
    run = Run.create(tmp_path, changed(recipe, train__steps=1), "run")
    assert train(run).cores_busy_elsewhere == 0.25
    assert cores == [len(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else [0]
    assert json.loads((run.path / "result.json").read_text())["cores_busy_elsewhere"] == 0.25


def test_a_learning_network_learns(train: Train, recipe: Recipe, splits: Splits, tmp_path: Path) -> None:
    """150 steps of momentum take the ten shapes well past guessing; the result says so for both kinds of weights."""
    recipe = changed(recipe, optimizer__momentum=0.9, optimizer__learning_rate=0.03, train__steps=150)
    recipe = changed(recipe, average__decay=0.9, distort__brightness=0.0, distort__contrast=[1.0, 1.0])
    run = Run.create(tmp_path, recipe, "run")
    train(run, look_at_test=True)
    result = json.loads((run.path / "result.json").read_text())
    assert result["test"]["average"]["accuracy"] > 0.25
    assert result["test"]["raw"]["accuracy"] > 0.2
    assert set(result) >= {"run", "preset", "steps", "epochs", "start_seconds", "train_seconds", "precision"}


def test_a_run_without_data_leaves_no_folder(recipe: Recipe, splits: Splits, tmp_path: Path) -> None:
    def fail(_: Recipe) -> Splits:
        raise UsageError("no such data")

    with pytest.raises(UsageError, match="no such data"):
        start_run(recipe, tmp_path, "run", fail)
    large = changed(recipe, input__batch_size=1001)
    with pytest.raises(UsageError, match="larger than the training set"):
        start_run(large, tmp_path, "run", lambda _: splits, given=["input.batch_size"])
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_nobody_asked_for_is_fitted_to_the_data(recipe: Recipe, splits: Splits, tmp_path: Path) -> None:
    told: list[str] = []
    large = changed(recipe, input__batch_size=1001)
    run, _ = start_run(large, tmp_path, "run", lambda _: splits, note=told.append)
    assert Run.open(run.path).recipe.input.batch_size == 125
    assert "1,000 images to train on do not fill a batch of 1,001: batches of 125" in told[0]


def test_the_arithmetic_auto_stood_for_is_written_down(recipe: Recipe, splits: Splits, tmp_path: Path) -> None:
    automatic = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision="auto"))
    run, _ = start_run(automatic, tmp_path, "run", lambda _: splits)
    assert Run.open(run.path).recipe.train.precision in ("fp32", "bf16")
    assert torch.get_num_threads() == 1
