"""What `thumbnet eval` makes of what cannot be used, found, read or written."""

import json

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "'0' is not a whole number of 1 or more"),
        (["--limit", "-5"], "'-5' is not a whole number of 1 or more"),
        (["--num_examples", "many"], "'many' is not a whole number"),
        (["--batch-size", "0"], "'0' is not a whole number"),
        (["--split", "tset"], "unknown 'tset' - did you mean 'test'?"),
        (["--weights", "best"], "unknown 'best' - known: average, both, raw"),
        (["--precision", "int8"], "unknown 'int8' - known: auto, bf16, fp16, fp32"),
        (["--checkpoint", "newest"], "'newest' is none of latest, best, all, and no step"),
        (["--checkpoint", "-1"], "--checkpoint"),
        (["--every", "0"], "'0' is not a duration"),
        (["--every", "soon"], "'soon' is not a duration"),
        (["--run_once", "maybe"], "'maybe' is neither true nor false"),
        (["--watch", "--run_once"], "--watch and --run_once"),
        (["--watch", "--checkpoint", "10"], "--watch evaluates every new one"),
        (["--split", "val"], "--validation N"),
        (["--split", "val", "--eval_data", "test"], "--split val and --eval_data test"),
        (["--checkpoint_dir", "trial", "trial"], "give the run once"),
        (["trail"], "did you mean 'trial'"),
        (["--wieghts", "raw"], "did you mean '--weights'"),
        (["--out", "nowhere"], "nowhere: there is no run here"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_used_is_a_usage_error(make_run, evaluate, arguments, message):
    make_run(10)
    code, stdout, stderr = evaluate(*arguments)
    assert code == 2
    assert message in stderr
    assert stdout == ""
    assert 1 <= len(stderr.strip().splitlines()) <= 3


def test_average_of_a_run_without_one_is_a_usage_error(make_run, evaluate, data):
    make_run(10, **{"average.decay": 0.0})
    code, _, stderr = evaluate("--weights", "average")
    assert (code, data) == (2, [])
    assert "--weights raw" in stderr


def test_checkpoint_folder_cannot_be_watched(make_run, evaluate):
    run = make_run(10)
    code, _, stderr = evaluate("--watch", run.path / "checkpoints" / "step-00000010")
    assert (code, "is one checkpoint" in stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no checkpoint yet"),
        (["--checkpoint", "best"], "there is no checkpoint yet"),
        (["--checkpoint", "all"], "there is no checkpoint that can be used"),
        (["--watch"], "the run has ended without a checkpoint"),
    ],
)
def test_run_without_checkpoint_fails(make_run, evaluate, arguments, message):
    make_run()
    code, stdout, stderr = evaluate(*arguments)
    assert (code, stdout) == (1, "")
    assert message in stderr


def test_missing_step_fails_before_the_data_is_touched(make_run, evaluate, data):
    make_run(10, 20)
    code, _, stderr = evaluate("--checkpoint", "15")
    assert (code, data) == (1, [])
    assert "no checkpoint of step 15 - there are: [10, 20]" in stderr


def test_damaged_newest_is_named_and_the_one_before_evaluated(make_run, evaluate):
    run = make_run(10, 20)
    file = run.checkpoints.path(20) / "average.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, stdout, stderr = evaluate("--json", "--no-plots")
    assert (code, json.loads(stdout)["step"]) == (0, 10)
    assert str(file) in stderr
    code, stdout, stderr = evaluate("--checkpoint", "20")
    assert (code, stdout) == (1, "")
    assert str(file) in stderr


def test_folder_that_cannot_be_written_fails_before_the_data_is_touched(make_run, evaluate, data, tmp_path):
    make_run(10)
    (tmp_path / "file").write_text("in the way")
    code, stdout, stderr = evaluate("--eval-dir", tmp_path / "file" / "results")
    assert (code, stdout, data) == (1, "", [])
    assert f"{tmp_path / 'file' / 'results'}: cannot write" in stderr
    assert "--eval-dir" in stderr


def test_tensorboards_folder_that_cannot_be_written_is_named_with_the_flag(make_run, evaluate):
    run = make_run(10)
    (run.path / "tensorboard").write_text("in the way")
    code, stdout, stderr = evaluate("--no-plots")
    assert (code, stdout) == (1, "")
    assert f"{run.path / 'tensorboard' / 'eval'}: cannot write" in stderr
    assert "choose another with --eval-dir" in stderr


def test_tensorboards_files_that_are_given_up_are_told_of(make_run, evaluate, monkeypatch):
    make_run(10)

    def refuse():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "thumbnet.evaluation.report.add_summaries", lambda evaluation, events, confusion: events.add_values(1, refuse)
    )
    code, stdout, stderr = evaluate("--json", "--no-plots")
    assert (code, json.loads(stdout)["step"]) == (0, 10)
    assert "TensorBoard's files are not complete: [Errno 28] No space left on device" in stderr


def test_figures_are_printed_though_the_disk_is_full(make_run, evaluate, monkeypatch):
    make_run(10)

    def refuse(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thumbnet.evaluation.report.replace_file", refuse)
    code, stdout, stderr = evaluate("--json", "--no-plots")
    assert (code, json.loads(stdout)["step"]) == (1, 10)
    assert "No space left" in stderr
    assert "To go on: free some space" in stderr


def test_every_checkpoint_that_can_be_used(make_run, evaluate):
    run = make_run(10, 20, 30)
    file = run.checkpoints.path(20) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, stdout, stderr = evaluate("--checkpoint", "all", "--json", "--no-plots")
    assert (code, [row["step"] for row in json.loads(stdout)]) == (0, [10, 30])
    assert str(file) in stderr
    assert [row["step"] for row in json.loads((run.path / "evaluation" / "checkpoints-test.json").read_text())] == [
        10,
        30,
    ]
