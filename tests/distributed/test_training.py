"""`thumbnet train` as replicas: processes with the variables that torchrun, SLURM or Kubernetes give them."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thumbnet.data.records import RecordFormat
from thumbnet.runs.checkpoint import load_checkpoint
from thumbnet.runs.run import Run

SMALL = ["train", "--data", "shapes", "--preset", "classic", "--precision", "fp32", "--threads", "1", "--lr", "0.01"]
# A batch of 10 divides by 2 and not by 3.
SHORT = [*SMALL, "--batch-size", "10", "--steps", "8", "--log-every", "1", "--checkpoint-every", "4"]
WHOLE = [*SHORT, "--validation", "50", "--summary-every", "4", "--json"]
SHARDS = Path(__file__).with_name("shards.py")
SHORT_FAREWELL = Path(__file__).with_name("short_farewell.py")
SLOW_VALIDATION = Path(__file__).with_name("slow_validation.py")
ENDLESS = [*SMALL, "--batch-size", "10", "--steps", "100000", "--log-every", "1", "--summary-every", "0"]


def files_of(folder: Path) -> set[str]:
    """Return the files of a run, without the parts of names that are times."""
    return {
        re.sub(r"events.*", "events", str(path.relative_to(folder))) for path in folder.rglob("*") if path.is_file()
    }


def assert_same_weights(one: Path, other: Path) -> None:
    """Compare two runs' newest checkpoints, to the rounding of float32 sums."""
    mine, theirs = (load_checkpoint(max((run / "checkpoints").glob("step-*"))) for run in (one, other))
    assert mine.step == theirs.step
    assert mine.average is not None
    assert theirs.average is not None
    for values, expected in ((mine.model, theirs.model), (mine.average, theirs.average)):
        for name, value in values.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def groups(start: Any, out: Path) -> dict[int, Any]:
    """The same training on 1, 2 and 3 devices."""
    groups = {count: start(count, [*WHOLE, "--out", str(out), "--name", f"on{count}"]) for count in (1, 2, 3)}
    for group in groups.values():
        assert set(group.end()) == {0}, group.errors()
    return groups


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_devices_trains_the_same(count: int, groups: dict[int, Any], out: Path) -> None:
    assert_same_weights(out / f"on{count}", out / "on1")
    assert files_of(out / f"on{count}") == files_of(out / "on1")
    for mine, alone in zip(rows_of(out / f"on{count}"), rows_of(out / "on1"), strict=True):
        assert mine.keys() == alone.keys()
        for key in ("step", "loss", "smoothed_loss", "accuracy", "validation_raw", "validation_average"):
            if key in mine:
                assert mine[key] == pytest.approx(alone[key], rel=1e-4), key
    result, expected = (json.loads(groups[number].outputs()[0]) for number in (count, 1))
    assert (result["replicas"], expected["replicas"]) == (count, 1)
    for weights in ("average", "raw"):
        assert result["test"][weights] == pytest.approx(expected["test"][weights], rel=1e-3)


def weights_of(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").glob("step-*"))
    return {name: (newest / f"{name}.safetensors").read_bytes() for name in ("model", "average", "state")}


def assert_same_bits(start: Any, out: Path, words: list[str], counts: tuple[int, ...]) -> None:
    groups = {count: start(count, [*words, "--out", str(out), "--name", f"on{count}"]) for count in counts}
    for group in groups.values():
        assert set(group.end()) == {0}, group.errors()
    for count in counts[1:]:
        assert weights_of(out / f"on{count}") == weights_of(out / "on1"), count
    assert "replicas over gloo, grains of" in groups[counts[-1]].errors()[0]


GROWING = ["--set", "model.options.widths=[8, 8, 8]", "--set", "schedule.resize=[[0.5, 0.75]]"]


@pytest.mark.parametrize("preset", [["classic", "--lr", "0.1"], ["quick", *GROWING]])
def test_with_grains_the_weights_are_the_same_to_the_bit(preset: list[str], start: Any, tmp_path: Path) -> None:
    """13 images in grains of 4, the last one of 1, on one device and on three."""
    words = ["train", "--data", "shapes", "--precision", "fp32", "--threads", "1", "--no-test", "--summary-every", "0"]
    words += ["--grain", "4", "--batch-size", "13", "--steps", "5", "--preset", *preset]
    assert_same_bits(start, tmp_path, words, (1, 3))


def test_a_resume_on_three_devices_is_the_same_to_the_bit(start: Any, tmp_path: Path) -> None:
    """The sum of three gradients depends on their order, and with it on the buckets that they lie in."""
    words = [*SMALL, "--no-test", "--summary-every", "0", "--batch-size", "12", "--out", str(tmp_path), "--steps"]
    resume = ["train", "--resume", str(tmp_path / "parts"), "--no-test", "--steps"]
    for more in ([*words, "8", "--name", "whole"], [*words, "5", "--name", "parts"], [*resume, "8"]):
        group = start(3, more)
        assert set(group.end()) == {0}, group.errors()
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")


def write_shards(folder: Path, files: int) -> Path:
    """Write record files of 80 random pictures each."""
    folder.mkdir()
    rng, layout = np.random.default_rng(0), RecordFormat()
    for number in range(files):
        images_NHWC = rng.integers(0, 256, (80, *layout.image_shape), dtype=np.uint8)
        (folder / f"{number}.bin").write_bytes(layout.pack(images_NHWC, rng.integers(0, 10, 80)).tobytes())
    return folder


def test_record_files_larger_than_the_pool_of_all_devices_train_the_same_to_the_bit(start: Any, tmp_path: Path) -> None:
    """400 pictures in 5 files, with room for 341: on one device; on two, in two parts that meet in mid-epoch."""
    files, out = write_shards(tmp_path / "files", 5), tmp_path / "out"
    words = [str(files), *SMALL, "--no-test", "--summary-every", "0", "--set", "input.pool_mib=1", "--pool", "1"]
    words += ["--batch-size", "50", "--grain", "25", "--out", str(out)]
    resumed = [str(files), "train", "--no-test", "--steps", "12", "--resume", str(out / "parts")]
    for count, more in (
        (1, [*words, "--steps", "12", "--name", "whole"]),
        (2, [*words, "--steps", "5", "--name", "parts"]),
        (2, resumed),
    ):
        group = start(count, more, script=SHARDS)
        assert set(group.end()) == {0}, group.errors()
    assert weights_of(out / "parts") == weights_of(out / "whole")


@pytest.mark.slow
def test_200_steps_of_the_classic_network_on_1_2_and_4_devices(start: Any, tmp_path: Path) -> None:
    words = ["train", "--data", "shapes", "--preset", "classic", "--precision", "fp32", "--threads", "1", "--no-test"]
    assert_same_bits(start, tmp_path, [*words, "--steps", "200", "--grain", "32"], (1, 2, 4))


def test_fewer_grains_than_devices(start: Any, tmp_path: Path) -> None:
    group = start(3, [*SHORT, "--grain", "5", "--out", str(tmp_path)])
    assert group.end() == [2, 2, 2], group.errors()
    assert "--grain 5 cuts a batch of 10 into 2, too few for 3 devices: use at most 3" in "".join(group.errors())


def test_replica_0_alone_prints_and_tells_how_the_work_is_shared(groups: dict[int, Any]) -> None:
    for count in (2, 3):
        assert groups[count].outputs()[1:] == [""] * (count - 1)
        assert groups[count].errors()[1:] == [""] * (count - 1)
    assert "devices: 2 replicas over gloo, 5 images of each batch on each\n" in groups[2].errors()[0]
    assert "devices: 3 replicas over gloo, 3 or 4 images of each batch on each\n" in groups[3].errors()[0]
    assert "devices:" not in groups[1].errors()[0]


def test_batch_normalization_is_never_silent(start: Any, tmp_path: Path) -> None:
    words = ["train", "--data", "shapes", "--preset", "quick", "--batch-size", "4", "--steps", "2", "--no-test"]
    group = start(2, [*words, "--set", "model.options.widths=[8, 8, 8]", "--precision", "fp32", "--out", str(tmp_path)])
    assert group.end() == [0, 0], group.errors()
    assert "batch normalization by the images of each replica, its running statistics averaged" in group.errors()[0]


@pytest.mark.parametrize(
    ("number", "rank", "code"), [(signal.SIGTERM, 1, 143), (signal.SIGINT, 0, 130)], ids=["term to 1", "int to 0"]
)
def test_a_signal_to_one_replica_stops_all_at_one_step_and_any_number_goes_on(
    number: signal.Signals, rank: int, code: int, start: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    group = start(2, [*ENDLESS, "--no-test", "--out", str(tmp_path), "--name", "run"])
    group.wait_for_step(run, 3)
    os.kill(group.pids[rank], number)
    assert group.end() == [code, code], group.errors()
    steps = Run.open(run).checkpoints.steps()
    assert len(steps) == 2  # the first and the last
    assert rows_of(run)[-1]["step"] == steps[-1]
    messages = [line for text in group.errors() for line in text.splitlines() if "stopped at step" in line]
    assert len(messages) == 1
    assert (
        f"stopped at step {steps[-1]}, saved; to go on, on any number of devices: thumbnet train --resume"
        in messages[0]
    )

    if number is signal.SIGTERM:
        last = str(steps[-1] + 3)
        on_three = start(3, ["train", "--resume", str(run), "--steps", last])
        assert on_three.end() == [0, 0, 0], on_three.errors()
        assert "test" not in json.loads((run / "result.json").read_text())
        assert "the run began on 2 devices and goes on on 3 devices" in on_three.errors()[0]
        alone = start(1, [*ENDLESS, "--out", str(tmp_path), "--name", "alone", "--steps", last, "--no-test"])
        assert alone.end() == [0], alone.errors()
        assert_same_weights(run, tmp_path / "alone")


@pytest.mark.parametrize(("steps", "number"), [("100000", signal.SIGTERM), ("2", signal.SIGINT)], ids=["mid", "last"])
def test_a_signal_to_one_replica_in_a_validation_ends_it_on_all(
    steps: str, number: signal.Signals, start: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [*ENDLESS, "--steps", steps, "--no-test", "--validation", "3000", "--checkpoint-every", "2"]
    # A validation takes each of the two a minute.
    group = start(2, [*words, "--out", str(tmp_path), "--name", "run"], script=SLOW_VALIDATION)
    group.wait_for_step(run, 2)
    os.kill(group.pids[1], number)
    assert group.end() == [128 + number] * 2, group.errors()
    assert Run.open(run).checkpoints.steps() == [0, 2]
    assert not any("validation_raw" in row for row in rows_of(run))
    assert "stopped at step 2, saved; to go on, on any number of devices: " in group.errors()[0]
    alone = start(1, ["train", "--resume", str(run), "--steps", "3"])
    assert alone.end() == [0], alone.errors()
    assert [row["step"] for row in rows_of(run) if "validation_raw" in row] == [2, 3]


def test_a_loss_that_is_not_finite_on_one_replica_stops_all_before_the_update(start: Any, tmp_path: Path) -> None:
    group = start(2, [*ENDLESS, "--lr", "1e20", "--out", str(tmp_path), "--name", "run"])
    assert group.end() == [1, 1], group.errors()
    assert sum("Model diverged" in text for text in group.errors()) == 1
    checkpoint = Run.open(tmp_path / "run").checkpoints.latest()
    assert all(value.isfinite().all() for value in checkpoint.model.values())


def test_replicas_with_other_recipes_or_too_many_of_them_are_refused_once(start: Any, tmp_path: Path) -> None:
    same = [*SHORT, "--out", str(tmp_path)]
    groups = {
        "replica 2 has another recipe": start(3, [same, same, [*same, "--seed", "9"]]),
        "3 replicas, and --batch-size 2 has no image for each": start(3, [*same, "--batch-size", "2"]),
        "unknown preset": start(2, ["train", "--preset", "clasic"]),
    }
    for expected, group in groups.items():
        assert set(group.end()) == {2}
        assert "".join(group.errors()).count("thumbnet: error") == 1, group.errors()
        assert expected in "".join(group.errors())
        assert "Traceback" not in "".join(group.errors())
    assert not list(tmp_path.iterdir())


def test_replicas_with_other_pictures_are_refused_once(start: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [[str(write_shards(tmp_path / f"on{rank}", 1 + rank)), *SHORT, "--out", str(out)] for rank in range(2)]
    group = start(2, words, script=SHARDS)
    assert group.end() == [2, 2], group.errors()
    assert "".join(group.errors()).count("thumbnet: error") == 1, group.errors()
    assert "replica 1 has other pictures than replica 0: give all machines the same data" in "".join(group.errors())
    assert not list(out.iterdir())


def test_no_meeting_place(start: Any, tmp_path: Path) -> None:
    words = [*SHORT, "--out", str(tmp_path), "--timeout", "1s"]
    unreachable = start(2, words, only=range(1, 2))
    waiting = start(3, words, only=range(1))
    unset = start(2, words, MASTER_ADDR="")
    nonsense = start(2, words, only=range(1, 2), MASTER_ADDR="no-such-machine.invalid")
    assert [group.end() for group in (unreachable, waiting, unset, nonsense)] == [[4], [4], [2, 2], [4]]
    assert "replica 1: cannot reach 127.0.0.1" in unreachable.errors()[0]
    assert "2 of 3 replicas have not come" in waiting.errors()[0]
    assert "MASTER_ADDR is not set" in unset.errors()[0]
    assert "replica 1: cannot reach no-such-machine.invalid" in nonsense.errors()[0]
    for group in (unreachable, waiting, unset, nonsense):
        assert len(group.errors()[0].splitlines()) <= 3
    assert not list(tmp_path.iterdir())


def test_a_replica_that_hangs_is_noticed_within_the_timeout(start: Any, tmp_path: Path) -> None:
    words = [*ENDLESS, "--out", str(tmp_path), "--name", "run", "--timeout", "8s"]
    group = start(2, words, script=SHORT_FAREWELL)
    group.wait_for_step(tmp_path / "run", 2)
    os.kill(group.pids[1], signal.SIGSTOP)
    group.wait_for_error(0)
    assert "replica 0: another of the 2 replicas was silent for 8 s" in group.errors()[0]
    os.kill(group.pids[1], signal.SIGCONT)
    # Replica 0, which held what they share, may have gone by now: then the other one speaks for itself.
    assert group.end() == [4, 4]
    assert "Traceback" not in "".join(group.errors())


def test_a_replica_that_dies_ends_the_others(start: Any, tmp_path: Path) -> None:
    group = start(3, [*ENDLESS, "--out", str(tmp_path), "--name", "run"], script=SHORT_FAREWELL)
    group.wait_for_step(tmp_path / "run", 2)
    os.kill(group.pids[2], signal.SIGKILL)
    assert group.end() == [4, 4, -9]
    assert "".join(group.errors()).count("thumbnet: error") == 1, group.errors()
    assert "another of the 3 replicas is gone" in "".join(group.errors())
    assert "Traceback" not in "".join(group.errors())
