import json
import shutil

import numpy as np
import pytest
from torch import nn

from thumbnet.data.dataset import Splits
from thumbnet.engine import resolve_precision
from thumbnet.errors import CheckpointError, UsageError
from thumbnet.evaluation import evaluator as module
from thumbnet.evaluation.evaluate import evaluate_weights
from thumbnet.evaluation.evaluator import Evaluator, choose_examples, choose_weights
from thumbnet.models import build_model
from thumbnet.runs.checkpoint import load_weights

FP32 = resolve_precision("fp32")
BOTH = ("average", "raw")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def notes() -> list[str]:
    return []


def test_both_weights_of_a_checkpoint(make_run, splits):
    run = make_run(10, 20)
    evaluation = Evaluator(run, splits, "test", weights=BOTH, precision=FP32).evaluate(10)
    assert (evaluation.run, evaluation.step, evaluation.split, evaluation.examples) == (run.path, 10, "test", 50)
    assert (evaluation.precision, evaluation.limited) == ("fp32", False)
    assert list(evaluation.metrics) == ["average", "raw"]
    assert evaluation.preferred is evaluation.metrics["average"]
    assert evaluation.dataset is splits.test
    for weights, metrics in evaluation.metrics.items():
        model: nn.Module = build_model(run.recipe.model, num_classes=10, crop=8)
        model.load_state_dict(load_weights(run.checkpoints.path(10), weights))
        expected = evaluate_weights(model, splits.test, run.recipe.distort, precision=FP32)
        assert metrics.loss == pytest.approx(expected.loss, abs=1e-6)
    assert evaluation.metrics["average"].loss != evaluation.metrics["raw"].loss


def test_order_of_checkpoints_leaves_no_trace(make_run, splits):
    run = make_run(10, 20)
    evaluator = Evaluator(run, splits, "test", weights=("raw",), precision=FP32)
    first = evaluator.evaluate(10).preferred.loss
    assert evaluator.evaluate(20).preferred.loss != first
    assert evaluator.evaluate(10).preferred.loss == first


@pytest.mark.parametrize(("split", "expected"), [("train", 30), ("val", 20), ("test", 50)])
def test_split_decides_the_images(make_run, splits, split, expected):
    evaluator = Evaluator(make_run(10), splits, split, weights=("raw",), precision=FP32)
    assert evaluator.evaluate(10).examples == expected


@pytest.mark.parametrize(
    ("limit", "examples", "limited"), [(1, 1, True), (49, 49, True), (50, 50, False), (99, 50, False)]
)
def test_limit_takes_the_first_images(make_run, splits, limit, examples, limited):
    evaluator = Evaluator(make_run(10), splits, "test", weights=("raw",), precision=FP32, limit=limit)
    evaluation = evaluator.evaluate_latest(pytest.fail)
    assert (evaluation.examples, evaluation.limited) == (examples, limited)
    np.testing.assert_array_equal(evaluator.dataset.labels, splits.test.labels[:examples])


def test_splits_that_are_not_there(pictures):
    splits = Splits(train=pictures(3), validation=None, test=None)
    with pytest.raises(UsageError, match=r"--split val: .*\n.*--validation N"):
        choose_examples(splits, "val")
    with pytest.raises(UsageError, match="--split test: pictures has no test images"):
        choose_examples(splits, "test")


def test_run_without_average(make_run):
    recipe = make_run(10, **{"average.decay": 0.0}).recipe
    assert choose_weights(recipe, "both") == choose_weights(recipe, "raw") == ("raw",)
    with pytest.raises(UsageError, match=r"keeps no average(.|\n)*--weights raw"):
        choose_weights(recipe, "average")


def test_run_with_average(make_run):
    recipe = make_run().recipe
    assert choose_weights(recipe, "both") == ("average", "raw")
    assert choose_weights(recipe, "average") == ("average",)
    assert choose_weights(recipe, "raw") == ("raw",)


def test_best_is_chosen_by_validation(make_run, save, splits):
    run = make_run()
    for step, metric in ((10, 0.2), (20, 0.6), (30, 0.4)):
        save(run, step, metric)
    evaluator = Evaluator(run, splits, "test", weights=BOTH, precision=FP32)
    assert evaluator.evaluate("best").step == 20


def test_best_without_validation_is_an_error(make_run, splits):
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        Evaluator(make_run(10), splits, "test", weights=BOTH, precision=FP32).evaluate("best")


def test_damaged_newest_is_named_and_the_one_before_is_taken(make_run, splits, notes):
    run = make_run(10, 20, 30)
    flip_a_bit(run.checkpoints.path(30) / "average.safetensors")
    flip_a_bit(run.checkpoints.path(20) / "model.safetensors")
    evaluation = Evaluator(run, splits, "test", weights=BOTH, precision=FP32).evaluate_latest(notes.append)
    assert evaluation.step == 10
    assert ["step-00000030" in notes[0], "step-00000020" in notes[1], len(notes)] == [True, True, 2]


def test_damage_to_weights_that_are_not_asked_for_does_not_matter(make_run, splits):
    run = make_run(10)
    flip_a_bit(run.checkpoints.path(10) / "average.safetensors")
    evaluator = Evaluator(run, splits, "test", weights=("raw",), precision=FP32)
    assert evaluator.evaluate_latest(pytest.fail).step == 10


def test_damaged_checkpoint_that_was_asked_for_is_an_error(make_run, splits):
    run = make_run(10, 20)
    flip_a_bit(run.checkpoints.path(20) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-00000020/model\.safetensors"):
        Evaluator(run, splits, "test", weights=BOTH, precision=FP32).evaluate(20)


@pytest.mark.parametrize(
    ("what", "message"),
    [("evaluate_latest", "none of the 2 checkpoints"), ("evaluate_all", "no checkpoint that can be used")],
)
def test_all_damaged_is_an_error(what, message, make_run, splits, notes):
    run = make_run(10, 20)
    for step in (10, 20):
        flip_a_bit(run.checkpoints.path(step) / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        getattr(Evaluator(run, splits, "test", weights=BOTH, precision=FP32), what)(notes.append)
    assert len(notes) == 2


def test_no_checkpoint_is_an_error(make_run, splits):
    evaluator = Evaluator(make_run(), splits, "test", weights=BOTH, precision=FP32)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        evaluator.evaluate_latest(pytest.fail)
    with pytest.raises(CheckpointError, match="no checkpoint that can be used"):
        evaluator.evaluate_all(pytest.fail)


def test_all_that_can_be_used_are_evaluated_and_the_others_named(make_run, splits, monkeypatch, notes):
    run = make_run(10, 20, 30, 40)
    flip_a_bit(run.checkpoints.path(20) / "model.safetensors")

    def load(path, weights):
        shutil.rmtree(run.checkpoints.folder / "step-00000030", ignore_errors=True)  # as a training that goes on does
        return load_weights(path, weights)

    monkeypatch.setattr(module, "load_weights", load)
    evaluations = Evaluator(run, splits, "test", weights=BOTH, precision=FP32).evaluate_all(notes.append)
    assert [evaluation.step for evaluation in evaluations] == [10, 40]
    assert notes[0].startswith("warning: ")
    assert "step-00000020/model.safetensors" in notes[0]
    assert notes[1:] == ["step 30: its checkpoint was deleted before it was read"]


def test_an_overflowing_checkpoint_is_named_and_passed_over(make_run, save_overflowing, splits, notes):
    run = make_run(10, 30)
    save_overflowing(run, 20)
    evaluator = Evaluator(run, splits, "test", weights=BOTH, precision=FP32)
    assert [evaluation.step for evaluation in evaluator.evaluate_all(notes.append)] == [10, 30]
    (note,) = notes
    assert note.startswith("warning: step 20: the network's output is not finite for 50 of 50 examples")


@pytest.mark.parametrize("what", ["evaluate_latest", "evaluate_all"])
def test_newer_format_is_not_passed_over(make_run, splits, what):
    run = make_run(10, 20)
    manifest = run.checkpoints.path(20) / "manifest.json"
    fields = json.loads(manifest.read_bytes())
    del fields["manifest_sha256"]
    from thumbnet.runs.checkpoint import _manifest_bytes

    manifest.write_bytes(_manifest_bytes(fields | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99 is newer"):
        getattr(Evaluator(run, splits, "test", weights=BOTH, precision=FP32), what)(pytest.fail)


def test_checkpoint_deleted_while_it_is_read_gives_way_to_the_newest(make_run, save, splits, monkeypatch):
    run = make_run(10, 20)

    def load(path, weights):
        if path.name == "step-00000020":  # the training goes on: saves another, deletes this one
            save(run, 30)
            shutil.rmtree(path)
        return load_weights(path, weights)

    monkeypatch.setattr(module, "load_weights", load)
    evaluator = Evaluator(run, splits, "test", weights=BOTH, precision=FP32)
    assert evaluator.evaluate_latest(pytest.fail).step == 30


def test_network_that_does_not_fit_is_an_error_at_once(make_run, splits, pictures):
    run = make_run(10, 20)
    other = Splits(train=pictures(3), validation=None, test=pictures(5))
    other.test.class_names = tuple("abc")
    with pytest.raises(CheckpointError, match=r"softmax_linear\.bias'.*\[3\].*\[10\]"):
        Evaluator(run, other, "test", weights=BOTH, precision=FP32).evaluate_latest(pytest.fail)
