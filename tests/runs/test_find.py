import os

import pytest

from thumbnet.config import load_preset
from thumbnet.errors import CheckpointError, UsageError
from thumbnet.runs.find import choose_checkpoint, find_begun, find_checkpoint, find_job, find_run
from thumbnet.runs.run import Run


@pytest.fixture
def recipe():
    return load_preset("classic")


def test_find_the_newest_run_whatever_was_touched(tmp_path, recipe):
    runs = [Run.create(tmp_path, recipe, name=name) for name in ("b", "c", "a")]
    for age, run in enumerate(reversed(runs)):
        for path in (run.path / "run.json", run.path):
            os.utime(path, (10_000 + age, 10_000 + age))
    (tmp_path / "zz-not-a-run").mkdir()
    (tmp_path / "zz-file").write_text("")
    found = find_run(tmp_path, None)
    assert found.path == tmp_path / "a"
    assert found.recipe == recipe


def test_find_by_name_path_and_checkpoint(tmp_path, recipe, make_checkpoint, monkeypatch):
    run = Run.create(tmp_path, recipe, name="one")
    Run.create(tmp_path, recipe, name="two")
    checkpoint = run.checkpoints.save(make_checkpoint(12))
    for text in ("one", str(run.path), f"{run.path}/"):
        assert find_run(tmp_path, text).path == run.path
        assert find_checkpoint(tmp_path, text)[1] is None
    assert find_run(tmp_path / "elsewhere", str(checkpoint)).path == run.path
    assert find_checkpoint(tmp_path, str(checkpoint))[1] == 12
    monkeypatch.chdir(checkpoint)
    assert find_checkpoint(tmp_path, ".")[1] == 12
    monkeypatch.chdir(run.path / "checkpoints")
    found, step = find_checkpoint(tmp_path, "step-00000012")
    assert (found.path, step) == (run.path, 12)


def test_nothing_found(tmp_path, recipe):
    for out in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="no run here: start one with `thumbnet train`"):
            find_run(out, None)
        with pytest.raises(UsageError, match="no runs yet"):
            find_run(out, "x")
    Run.create(tmp_path, recipe, name="frogs-1")
    with pytest.raises(UsageError, match="did you mean 'frogs-1'"):
        find_run(tmp_path, "frog-1")
    with pytest.raises(UsageError, match=r"there are: frogs-1$"):
        find_run(tmp_path, "zzz")
    for index in range(10):
        Run.create(tmp_path, recipe, name=f"run{index}")
    with pytest.raises(UsageError, match=r"run9 and 3 more$"):
        find_run(tmp_path, "zzz")


@pytest.mark.parametrize("text", ["", "\x00", "x" * 5000, "checkpoints/step-00000001", "/"])
def test_odd_names_are_usage_errors(tmp_path, recipe, text):
    Run.create(tmp_path, recipe, name="one")
    with pytest.raises(UsageError):
        find_run(tmp_path, text)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"created": 5}', "\x00"])
def test_a_damaged_run_file_is_named(tmp_path, recipe, content):
    run = Run.create(tmp_path, recipe, name="one")
    (run.path / "run.json").write_text(content)
    for name in (None, "one"):
        with pytest.raises(CheckpointError, match=r"run\.json: damaged"):
            find_run(tmp_path, name)


def test_which_checkpoint_is_meant(tmp_path, recipe, make_checkpoint):
    run = Run.create(tmp_path, recipe, name="one")
    checkpoint = run.checkpoints.save(make_checkpoint(12))
    for asked in ("latest", "best", 5):
        assert choose_checkpoint(tmp_path, "one", asked)[1] == asked
    assert choose_checkpoint(tmp_path, str(checkpoint), "latest")[1] == 12
    for asked in ("best", 12):
        with pytest.raises(UsageError, match=f"is one checkpoint: name its run, {run.path}"):
            choose_checkpoint(tmp_path, str(checkpoint), asked)


def test_the_newest_run_of_a_job(tmp_path, recipe, monkeypatch):
    assert find_job(tmp_path, "7") is None
    for name, job in (("b", "7"), ("a", "7"), ("c", "8"), ("d", None)):
        monkeypatch.setattr("thumbnet.runs.run.job_of", lambda environment, job=job: job)
        Run.create(tmp_path, recipe, name=name)
    assert find_job(tmp_path, "7").path.name == "a"
    assert find_job(tmp_path, "8").path.name == "c"
    assert find_job(tmp_path, "9") is None


def test_the_newest_run_with_a_checkpoint(tmp_path, recipe, make_checkpoint):
    notes: list[str] = []
    with pytest.raises(UsageError, match="no run here: start one with `thumbnet train`"):
        find_begun(tmp_path, notes.append)
    runs = {name: Run.create(tmp_path, recipe, name=name) for name in "dcba"}
    with pytest.raises(CheckpointError, match=r"no run here has a checkpoint to go on from: .* start a new run"):
        find_begun(tmp_path, notes.append)
    assert notes == []
    for name, passed_over in {"d": f"{tmp_path}/a and 2 more", "b": f"{tmp_path}/a"}.items():
        runs[name].checkpoints.save(make_checkpoint(0))
        assert find_begun(tmp_path, notes.append).path.name == name
        assert notes.pop() == (
            f"passed over {passed_over}, without a checkpoint to go on from: going on with {tmp_path}/{name}"
        )
    runs["a"].checkpoints.save(make_checkpoint(5))
    assert find_begun(tmp_path, notes.append).path.name == "a"
    assert notes == []


def test_a_run_whose_only_checkpoint_a_killed_save_has_moved_is_not_passed_over(tmp_path, recipe, make_checkpoint):
    for name in ("older", "newer"):
        run = Run.create(tmp_path, recipe, name=name)
        path = run.checkpoints.save(make_checkpoint(3))
    path.rename(path.with_name(f".replaced-{path.name}"))
    assert find_begun(tmp_path, lambda note: pytest.fail(note)).path.name == "newer"


def test_the_home_folder_in_a_path(tmp_path, recipe, monkeypatch):
    run = Run.create(tmp_path / "runs", recipe)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_run(tmp_path / "elsewhere", f"~/runs/{run.path.name}").path == run.path


def test_a_folder_of_runs_means_its_newest(tmp_path, recipe):
    out = tmp_path / "cifar10_train"
    for name in ("b", "a"):
        newest = Run.create(out, recipe, name=name)
    found, step = find_checkpoint(tmp_path / "runs", str(out))
    assert (found.path, step) == (newest.path, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no run"):
        find_run(out, str(tmp_path / "empty"))


def test_what_cannot_be_read_is_passed_over(tmp_path, recipe, monkeypatch):
    for name in ("mine", "theirs"):
        Run.create(tmp_path, recipe, name=name)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.parent.name != "theirs" and access(path, mode))
    assert find_run(tmp_path, None).path.name == "mine"
    with pytest.raises(UsageError, match=r"no run 'theirs' in .* there are: mine$"):
        find_run(tmp_path, "theirs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_closed_folders(tmp_path, recipe):
    mine, theirs = (Run.create(tmp_path / "runs", recipe, name=name) for name in ("mine", "theirs"))
    theirs.path.chmod(0)
    try:
        assert find_run(tmp_path / "runs", None).path == mine.path
        theirs.path.parent.chmod(0o300)
        assert find_run(tmp_path / "runs", "mine").path == mine.path
        for find in (lambda: find_run(tmp_path / "runs", None), lambda: find_job(tmp_path / "runs", "7")):
            with pytest.raises(UsageError, match="cannot look for runs here: Permission denied"):
                find()
    finally:
        theirs.path.parent.chmod(0o700)
        theirs.path.chmod(0o700)


def test_the_folder_of_its_checkpoints_names_a_run(tmp_path, recipe):
    run = Run.create(tmp_path, recipe, name="mine")
    assert find_checkpoint(tmp_path, str(run.path / "checkpoints"))[0].path == run.path
