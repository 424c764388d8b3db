"""What `thumbnet eval` evaluates, prints and writes, once or as a watch."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from thumbnet.cli.main import build_parser
from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.errors import UsageError
from thumbnet.evaluation.evaluate import evaluate_views
from thumbnet.runs.facts import write_facts


def result_of(evaluate, *arguments: object) -> dict:
    code, stdout, stderr = evaluate("--json", "--no-plots", *arguments)
    assert code == 0, stderr
    (line,) = stdout.splitlines()
    return json.loads(line)


def test_newest_run_and_checkpoint_in_full(make_run, evaluate):
    make_run(10, name="older")
    run = make_run(10, 20)
    code, stdout, stderr = evaluate()
    assert code == 0
    assert stdout.startswith("trial, step 20: 60 test images, fp32\n")
    for text in ("average weights", "raw weights", "difference", "top-5", "calibration", "hourglass"):
        assert text in stdout
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}: precision @ 1 = [01]\.\d{3}", stdout.splitlines()[-1])
    assert "step-00000020-test.json" in stderr
    stem = "step-00000020-test"
    assert sorted(path.name for path in (run.path / "evaluation").iterdir()) == [
        *(f"{stem}-{name}" for name in ("classes.png", "confusion.png", "mistakes.csv", "mistakes.png")),
        f"{stem}-reliability.png",
        f"{stem}.csv",
        f"{stem}.json",
    ]
    assert len(list((run.path / "tensorboard" / "eval").glob("events.out.tfevents.*"))) == 1


def test_json_is_one_object_and_the_file_is_the_same(make_run, evaluate):
    run = make_run(10)
    result = result_of(evaluate)
    assert (result["run"], result["step"], result["split"]) == (str(run.path), 10, "test")
    assert result["examples"] == 60
    for weights in ("average", "raw"):
        assert {"accuracy", "top5", "loss", "ece", "per_class"} <= result[weights].keys()
    assert result["average"]["loss"] != result["raw"]["loss"]
    assert json.loads((run.path / "evaluation" / "step-00000010-test.json").read_text()) == result
    assert not list((run.path / "evaluation").glob("*.png"))


def test_batch_size_changes_nothing(make_run, evaluate):
    make_run(10)
    one, other = (result_of(evaluate, "--batch-size", size) for size in (7, 500))
    assert one["average"]["confusion"] == other["average"]["confusion"]
    assert one["raw"]["loss"] == pytest.approx(other["raw"]["loss"], abs=1e-6)


def test_run_is_found_by_name_path_and_checkpoint_folder(make_run, evaluate):
    run = make_run(10, 20, name="wanted")
    make_run(30, name="newer")
    for name in ("wanted", run.path):
        assert result_of(evaluate, name)["step"] == 20
    assert result_of(evaluate, run.path / "checkpoints" / "step-00000010")["step"] == 10
    assert result_of(evaluate, "wanted", "--checkpoint", "10")["step"] == 10


def test_best_checkpoint(make_run, save_checkpoint, evaluate):
    run = make_run()
    for step, metric in ((10, 0.9), (20, 0.5)):
        save_checkpoint(run, step, metric)
    assert result_of(evaluate, "--checkpoint", "best")["step"] == 10
    assert result_of(evaluate, "--checkpoint", "latest")["step"] == 20


@pytest.mark.parametrize("weights", ["average", "raw"])
def test_one_kind_of_weights(make_run, evaluate, weights):
    make_run(10)
    result = result_of(evaluate, "--weights", weights)
    other = {"average": "raw", "raw": "average"}[weights]
    assert result[weights]["accuracy"] >= 0
    assert result[other] is None


def asked_for(data):
    """Return names and validation counts of the data that was loaded since the last time."""
    found = [(config.name, config.validation) for config in data]
    data.clear()
    return found


def test_other_data_of_the_same_classes(make_run, evaluate, data):
    run = make_run(10, **{"data.validation": 40.0})
    assert evaluate("--data", "others", "--no-plots")[0] == 0
    # Of others all are looked at, unless what was kept for validation is asked for.
    assert asked_for(data) == [("others", 40), ("others", 0)]
    assert evaluate("--data", "others", "--no-plots", "--split", "val")[0] == 0
    assert asked_for(data) == [("others", 40)]
    assert run.recipe.data.name == "shapes"


def test_pictures_that_were_moved_are_split_as_in_the_run_and_are_its_own(make_run, evaluate, data, shapes):
    run = make_run(10, **{"data.validation": 40.0})
    write_facts(run.path, shapes)
    code, stdout, stderr = evaluate("--data", "moved", "--no-plots")
    assert code == 0
    assert asked_for(data) == [("moved", 40)]
    assert stdout.startswith("trial, step 10: 60 test images, fp32\n")
    assert "step-00000010-test.json" in stderr


def test_other_data_too_small_for_the_validation_of_the_run(make_run, evaluate, data, monkeypatch, shapes):
    make_run(10, **{"data.validation": 40.0})

    def load(config, **_):
        if config.validation:
            raise UsageError("too few")
        return dataclasses.replace(shapes, validation=None)

    monkeypatch.setattr("thumbnet.evaluation.evaluator.load_splits", load)
    assert result_of(evaluate, "--data", "few")["examples"] == 60


def test_every_checkpoint_is_looked_at_once_from_a_single_view(make_run, evaluate, monkeypatch):
    run = make_run(10, 20, **{"evaluation.views": "mirror"})
    asked = []

    def spy(*arguments, **keywords):
        asked.append(arguments[3].views)
        return evaluate_views(*arguments, **keywords)

    monkeypatch.setattr("thumbnet.evaluation.evaluator.evaluate_views", spy)
    assert evaluate("--checkpoint", "all", "--weights", "raw", "--no-plots")[0] == 0
    assert evaluate("--weights", "raw", "--no-plots")[0] == 0
    assert asked == ["one", "one", "mirror"]
    # Figures of one kind of weights leave those of both alone.
    assert (run.path / "evaluation" / "checkpoints-test-raw.json").exists()


def test_figures_of_other_data_are_not_taken_for_the_runs_own(make_run, evaluate, shapes):
    run = make_run(10)
    own = shapes.test
    there = [ImageDataset("beach", own.class_names, own._layout, own._parts, index=own._index)] * 2
    write_facts(run.path, Splits(train=there[0], validation=None, test=there[1]))
    code, stdout, stderr = evaluate("--no-plots", "--limit", "9")
    assert code == 0
    assert stdout.startswith("trial, step 10: the first 9 test images of shapes, fp32\n")
    assert "step-00000010-test-of-shapes-first-9.json" in stderr


def test_splits_and_limit(make_run, evaluate):
    make_run(10, **{"data.validation": 40})
    assert result_of(evaluate, "--split", "val")["examples"] == 40
    assert result_of(evaluate, "--split", "train")["examples"] == 160
    assert result_of(evaluate, "--limit", "7")["examples"] == 7
    code, stdout, stderr = evaluate("--limit", "1000", "--json")
    assert (code, json.loads(stdout)["examples"]) == (0, 60)
    assert "has 60 images, all are evaluated" in stderr


def test_run_without_average_shows_raw_and_says_so(make_run, evaluate):
    make_run(10, **{"average.decay": 0.0})
    code, stdout, stderr = evaluate("--json", "--no-plots")
    assert code == 0
    assert "no average" in stderr
    assert json.loads(stdout)["average"] is None


def test_results_folder_of_choice(make_run, evaluate, tmp_path):
    run = make_run(10)
    result_of(evaluate, "--eval-dir", tmp_path / "there")
    names = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert names[0].startswith("events.out.tfevents.")
    assert names[1:] == [f"step-00000010-test{rest}" for rest in ("-mistakes.csv", ".csv", ".json")]
    assert not (run.path / "evaluation").exists()
    assert not (run.path / "tensorboard").exists()


def test_watch_of_a_run_that_has_ended(make_run, evaluate):
    make_run(10, 20)
    code, stdout, _ = evaluate("--watch")
    assert code == 0
    assert [re.search(r"precision @ 1 = .* \(step (\d+), test", line)[1] for line in stdout.splitlines()] == [
        "10",
        "20",
    ]
    code, stdout, _ = evaluate("--watch", "--json")
    assert [json.loads(line)["step"] for line in stdout.splitlines()] == [10, 20]


def test_a_watcher_that_comes_first_waits_for_the_run(make_run, evaluate, monkeypatch):
    monkeypatch.setattr("thumbnet.cli.eval.time.sleep", lambda _: make_run(10, name="late"))
    code, stdout, stderr = evaluate("late", "--watch")
    assert (code, stdout.count("precision @ 1")) == (0, 1), stderr
    assert stderr.count("waiting for it to begin") == 1
    assert evaluate("later")[0] == 2


def test_without_test_images_the_validation_split_is_evaluated(make_run, evaluate, shapes, monkeypatch):
    make_run(10, **{"data.validation": 40})
    without = Splits(train=shapes.train, validation=shapes.validation, test=None)
    monkeypatch.setattr("thumbnet.evaluation.evaluator.load_splits", lambda *_, **__: without)
    code, stdout, stderr = evaluate("--no-plots")
    assert (code, "step 10: 40 val images" in stdout) == (0, True)
    assert "has no test images: evaluating its val split" in stderr
    assert evaluate("--split", "test")[0] == 2


def test_a_command_of_the_tutorial(make_run, evaluate, tmp_path):
    run = make_run(10, 20)
    results = tmp_path / "cifar10_eval"
    arguments = ["--checkpoint_dir", run.path, "--eval_dir", results, "--eval_data", "train_eval"]
    code, stdout, stderr = evaluate(
        *arguments, "--num_examples", "50", "--eval_interval_secs", "60", "--run_once", "--use_fp16"
    )
    assert (code, stdout.count("precision @ 1")) == (0, 1), stderr
    assert "step 20: the first 50 train images" in stdout
    assert "bf16" in stdout
    assert (results / "step-00000020-train-first-50.json").exists()


@pytest.mark.parametrize(
    ("arguments", "watching"),
    [
        ([], False),
        (["--watch"], True),
        (["--every", "2m"], True),
        (["--eval_interval_secs", "300"], True),
        (["--eval_interval_secs=300", "--run_once=true"], False),
        (["--run_once"], False),
        (["--run_once", "True"], False),
        (["--run_once", "False"], True),
        (["--run_once=false"], True),
    ],
)
def test_when_to_watch(arguments, watching):
    from thumbnet.cli.eval import wants_watch

    assert wants_watch(build_parser().parse_args(["eval", *arguments])) is watching


@pytest.fixture
def start_watch(out) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a watch in another process, on the first 20 images."""
    started: list[subprocess.Popen] = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "thumbnet.cli.main", "eval", "--out", out, "--watch", "--limit", "20"]
        started.append(
            subprocess.Popen(
                [*command, "--threads", "1", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                # A test run in the background has SIGINT ignored, and so would this process.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_training_is_followed_from_another_process(make_run, save_checkpoint, start_watch):
    run = make_run(10)
    with run.lock():
        watch = start_watch("--every", "0.1s")
        assert "step 10, test first 20" in watch.stdout.readline()
        save_checkpoint(run, 20)
        assert "step 20, test first 20" in watch.stdout.readline()
        assert watch.poll() is None
    rest, errors = watch.communicate(timeout=60)
    assert (rest, watch.returncode) == ("", 0), errors


def test_ctrl_c_ends_a_watch_with_its_exit_code(make_run, start_watch):
    run = make_run(10)
    with run.lock():
        watch = start_watch()
        assert "step 10" in watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=60)
    assert watch.returncode == 130
    assert "Traceback" not in errors
