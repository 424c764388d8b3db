import ctypes
import dataclasses
import errno
import json
import math
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

import thumbnet
from thumbnet.config import load_preset
from thumbnet.errors import CheckpointError, ThumbnetError, UsageError
from thumbnet.kernels import Library
from thumbnet.runs.run import Run, arithmetic


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def recipe():
    return load_preset("classic", {"train.steps": 7, "model.options": {"width": 3}, "train.keep": 2})


def test_a_new_run(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/bin/thumbnet", "train", "--name", "two words"])
    run = Run.create(tmp_path / "deep" / "runs", recipe)
    assert run.path.parent == tmp_path / "deep" / "runs"
    assert run.path.name.startswith("classic-20")
    assert names(run.path) == ["checkpoints", "recipe.toml", "run.json"]
    described = json.loads((run.path / "run.json").read_text())
    assert described["command"] == "thumbnet train --name 'two words'"
    assert described["thumbnet"] == thumbnet.__version__
    assert described["machine"]["torch"] == torch.__version__
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))
    assert described["machine"]["cpu"]
    assert described["machine"]["cores"] >= 1
    assert described["machine"]["threads"] == torch.get_num_threads()
    assert described["created"].endswith("+00:00")
    opened = Run.open(run.path)
    assert opened.recipe == recipe
    assert opened.created == run.created == described["created"]
    assert opened.checkpoints.keep == 2
    assert opened.checkpoints.folder == run.path / "checkpoints"
    assert not opened.finished


def test_runs_made_at_once_get_folders_of_their_own(tmp_path, recipe):
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(Run.create(tmp_path, recipe).path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == len(names(tmp_path)) == 8


def test_a_name(tmp_path, recipe, make_checkpoint):
    run = Run.create(tmp_path, recipe, name="first.try_2")
    assert run.path == tmp_path / "first.try_2"
    (run.path / "log.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"never overwritten: choose another name$") as error:
        Run.create(tmp_path, recipe, name="first.try_2")
    assert error.value.exit_code == 2
    assert (run.path / "log.txt").read_text() == "mine"
    run.checkpoints.save(make_checkpoint(3))  # now there is something to go on with
    with pytest.raises(UsageError, match=r"choose another name, or go on with it: thumbnet train --resume /"):
        Run.create(tmp_path, recipe, name="first.try_2")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UsageError, match=r"pictures exists, .* choose another name$"):
        Run.create(tmp_path, recipe, name="pictures")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", "-x", ".hidden", "a b", "ü", "a\nb", "a\n", "x" * 101])
def test_impossible_names(tmp_path, recipe, name):
    with pytest.raises(UsageError, match=r"--name .* beginning with a letter, digit or _"):
        Run.create(tmp_path / "runs", recipe, name=name)
    assert names(tmp_path) == []


def test_a_preset_name_with_a_slash_stays_in_the_folder(tmp_path, recipe):
    recipe = load_preset("classic", {"preset": "../../evil me"})
    assert Run.create(tmp_path, recipe).path.parent == tmp_path


def test_out_is_a_file(tmp_path, recipe):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(UsageError, match=f"{out}: cannot make the folder of the run.*") as error:
            Run.create(out, recipe)
        assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("number", "kind", "exit_code", "todo"),
    [
        (errno.EACCES, UsageError, 2, "make the folder writable"),
        (errno.EROFS, UsageError, 2, "make the folder writable"),
        (errno.ENOSPC, ThumbnetError, 1, "free some space"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "write", "fsync"])
def test_a_folder_that_cannot_be_written(tmp_path, recipe, monkeypatch, number, kind, exit_code, todo, call):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind, match=todo) as error:
        Run.create(tmp_path, recipe)
    assert error.value.exit_code == exit_code
    assert len(str(error.value).splitlines()) <= 3
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_nothing_half_made_is_left(tmp_path, recipe, monkeypatch, error):
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("thumbnet.runs.run._describe_run", fail)
    with pytest.raises(type(error)):
        Run.create(tmp_path, recipe)
    assert names(tmp_path) == []


def test_a_recipe_that_is_not_utf8(tmp_path, recipe):
    strange = load_preset("classic", {"data.name": "/pictures/caf\udce9"})
    with pytest.raises(UsageError, match=r"this is not UTF-8: name = \"/pictures/caf\\udce9"):
        Run.create(tmp_path, strange)
    assert names(tmp_path) == []
    run = Run.create(tmp_path, recipe)
    with pytest.raises(UsageError, match="this is not UTF-8"):
        run.change_recipe(strange)
    assert Run.open(run.path).recipe == recipe


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path, recipe):
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="make the folder writable"):
        Run.create(tmp_path / "runs", recipe)
    tmp_path.chmod(0o755)


def test_metrics(tmp_path, recipe):
    run = Run.create(tmp_path, recipe)
    assert run.read_metrics() == []
    run.append_metrics({"step": 1, "loss": 4.68, "inner": {"x": [1, math.nan]}})
    run.append_metrics({"step": 2, "loss": math.inf})
    assert run.read_metrics() == [{"step": 1, "loss": 4.68, "inner": {"x": [1, None]}}, {"step": 2, "loss": None}]


def test_metrics_torn_anywhere_keep_the_rows_before(tmp_path, recipe):
    run = Run.create(tmp_path, recipe)
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "loss": 12.5})
    path = run.path / "metrics.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        rows = run.read_metrics()
        # A row that lacks nothing but its newline is a row.
        assert [row["step"] for row in rows] == list(range(1, (whole[:size] + b"\n").count(b"}\n") + 1))
        run.rewind(3)
        run.append_metrics({"step": 9})
        assert run.read_metrics() == [*rows, {"step": 9}]


def test_metrics_damaged_in_the_middle(tmp_path, recipe):
    run = Run.create(tmp_path, recipe)
    for line in ("not json", '{"loss": 1}', "[1]", '{"step": "x"}', "\x00\x00", "null"):
        (run.path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2.*delete that line"):
            run.read_metrics()


def test_rewind_keeps_steps_unique(tmp_path, recipe):
    run = Run.create(tmp_path, recipe)
    for step in range(0, 50, 10):
        run.append_metrics({"step": step, "take": 1})
    run.finish({"accuracy": 0.5})
    run.rewind(20)
    assert not run.finished
    for step in range(30, 60, 10):
        run.append_metrics({"step": step, "take": 2})
    assert [(row["step"], row["take"]) for row in run.read_metrics()] == [
        (0, 1),
        (10, 1),
        (20, 1),
        (30, 2),
        (40, 2),
        (50, 2),
    ]


def test_a_changed_recipe_is_written_and_kept_to(tmp_path, recipe):
    run = Run.create(tmp_path, recipe)
    longer = load_preset("classic", {"train.steps": 70, "train.keep": 5})
    run.change_recipe(longer)
    for same in (run, Run.open(run.path)):
        assert same.recipe == longer
        assert same.checkpoints.keep == 5


def test_finish(tmp_path, recipe):
    run = Run.create(tmp_path, recipe)
    run.finish({"accuracy": 0.86, "loss": math.nan})
    assert run.finished
    assert Run.open(run.path).finished
    assert json.loads((run.path / "result.json").read_text()) == {"accuracy": 0.86, "loss": None}


@pytest.mark.parametrize(
    "act",
    [
        lambda r: r.finish({}),
        lambda r: r.change_recipe(r.recipe),
        lambda r: r.rewind(1),
        lambda r: r.leave_test_alone(),
        lambda r: r.append_metrics({"step": 1}),
    ],
)
def test_a_folder_that_is_gone(tmp_path, recipe, act):
    run = Run.create(tmp_path, recipe)
    run.path.rename(tmp_path / "away")
    with pytest.raises(ThumbnetError, match="cannot write"):
        act(run)


def test_open_needs_a_run(tmp_path):
    with pytest.raises(UsageError, match=r"not the folder of a run, it has no run\.json"):
        Run.open(tmp_path)


def test_the_resume_command_survives_a_shell(tmp_path, recipe):
    run = Run.create(tmp_path / "my runs", recipe, name="one")
    assert run.resume_command == f"thumbnet train --resume '{run.path}'"


def test_a_run_knows_where_its_data_was_kept_as_long_as_it_is_there(tmp_path, recipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    run = Run.create(tmp_path / "runs", recipe, data_dir=Path("data"))
    monkeypatch.chdir("/")
    assert Run.open(run.path).data_dir == tmp_path / "data"
    (tmp_path / "data").rmdir()
    assert run.data_dir is None
    assert Run.create(tmp_path / "runs", recipe, data_dir=Path("x" * 1000)).data_dir is None
    assert Run.create(tmp_path / "runs", recipe).data_dir is None


def test_a_run_remembers_to_leave_the_test_set_alone(tmp_path, recipe):
    run = Run.create(tmp_path, recipe, data_dir=tmp_path)
    assert run.looks_at_test
    run.leave_test_alone()
    again = Run.open(run.path)
    assert not again.looks_at_test
    assert (again.created, again.data_dir, again.threads) == (run.created, tmp_path, run.threads)


def test_other_kernels_are_other_arithmetic(monkeypatch):
    """Their sums may round otherwise."""
    library = Library(handle=ctypes.CDLL(None), why="", version="0123")
    monkeypatch.setattr("thumbnet.runs.run.load_library", lambda: library)
    before = arithmetic()
    assert before["kernels"].endswith(" 0123")
    library = dataclasses.replace(library, version="4567")
    assert {name for name, value in arithmetic().items() if value != before[name]} == {"kernels"}
    library = dataclasses.replace(library, handle=None)
    assert arithmetic()["kernels"] == "none"


def test_the_lock_of_one_process(tmp_path, recipe):
    run = Run.create(tmp_path, recipe)
    (run.checkpoints.folder / ".tmp-step-00000001").mkdir()
    (run.path / ".tmp-metrics.jsonl-0123abcd").write_bytes(b"half")
    (run.path / ".tmp-model.onnx-0123abcd").write_bytes(b"being written by an export, which takes no lock")
    assert not run.is_training()
    with run.lock():
        assert names(run.checkpoints.folder) == []
        assert names(run.path) == [
            ".lock",
            ".tmp-model.onnx-0123abcd",
            "checkpoints",
            "recipe.toml",
            "run.json",
        ]
        assert Run.open(run.path).is_training()
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} on .* is training this run"), run.lock():
            pytest.fail("two locks")
    assert not run.is_training()
    with run.lock():
        pass
