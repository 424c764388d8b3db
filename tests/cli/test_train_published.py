"""Presets for data sets that cannot be fetched in a test, on a few pictures in the form of the published files."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

import thumbnet.data
import thumbnet.data.svhn
from thumbnet.cli.main import main
from thumbnet.data.cifar import CIFAR100, CIFAR100_COARSE
from thumbnet.data.description import Archive, RecordFile
from thumbnet.data.svhn import DigitSet, MatFile

SMALL = ["--steps", "2", "--batch-size", "20", "--precision", "fp32", "--threads", "1", "--offline"]
SMALL += ["--summary-every", "0"]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with `cifar-100-binary` in miniature: a record is coarse label, fine label, red, green, blue."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cache" / "cifar-100-binary"
    folder.mkdir(parents=True)
    files = []
    for name, count in (("train.bin", 60), ("test.bin", 20)):
        fine = rng.permutation(100)[:count]
        data = b"".join(bytes([label // 5, label]) + rng.bytes(3072) for label in fine)
        (folder / name).write_bytes(data)
        files.append(RecordFile(name=name, records=count, digest=sha256(data)))
    tiny = {
        dataset.name: dataclasses.replace(dataset, train=(files[0],), test=(files[1],))
        for dataset in (CIFAR100, CIFAR100_COARSE)
    }
    monkeypatch.setattr(thumbnet.data, "record_sets", lambda: tiny)
    return folder.parent


@pytest.mark.parametrize(
    ("data", "classes", "last"), [("cifar100", 100, "worm"), ("cifar100-coarse", 20, "vehicles_2")]
)
def test_cifar100_by_fine_and_by_coarse_labels(
    data: str, classes: int, last: str, cifar100: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "runs"), "--data-dir", str(cifar100)]
    narrow = ["--set", "model.options.widths=[32, 32, 32]"]
    assert (
        main(["train", "--preset", "cifar100", "--data", data, *SMALL, *narrow, *out, "--name", "run", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert (result["preset"], result["steps"]) == ("cifar100", 2)
    facts = json.loads((tmp_path / "runs" / "run" / "data.json").read_text())
    assert (facts["name"], len(facts["class_names"]), facts["class_names"][-1]) == (data, classes, last)
    assert (facts["train"], facts["test"]) == (60, 20)
    assert main(["eval", "run", *out, "--offline", "--json", "--no-plots", "--threads", "1"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["raw"]["accuracy"] == result["test"]["raw"]["accuracy"]
    assert np.shape(evaluated["raw"]["confusion"]) == (classes, classes)


def test_both_names_of_cifar100_are_one_set_of_files_to_check(
    cifar100: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "verify", "--data-dir", str(cifar100), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["cifar100"]
    assert main(["data", "verify", "cifar100-coarse", "--data-dir", str(cifar100), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["cifar100-coarse"]


@pytest.mark.parametrize(("data", "byte", "label", "most"), [("cifar100", 1, 100, 99), ("cifar100-coarse", 0, 20, 19)])
def test_a_label_of_cifar100_that_is_out_of_range(
    data: str, byte: int, label: int, most: int, cifar100: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cifar100 / "cifar-100-binary" / "train.bin"
    content = bytearray(path.read_bytes())
    content[3 * 3074 + byte] = label
    path.write_bytes(content)
    out = ["--out", str(tmp_path / "runs"), "--data-dir", str(cifar100)]
    assert main(["train", "--preset", "cifar100", "--data", data, *SMALL, *out]) == 3
    error = capsys.readouterr().err
    assert f"train.bin: record 3 (byte offset {3 * 3074 + byte:,}) has label {label}, expected 0 to {most}" in error
    assert not list((tmp_path / "runs").iterdir())


def write_digits(folder: Path, split: str, variables: dict[str, np.ndarray], count: int) -> MatFile:
    path = folder / f"{split}_32x32.mat"
    savemat(path, variables, do_compression=True)
    data = path.read_bytes()
    archive = Archive(url=f"http://127.0.0.1:9/{path.name}", size_bytes=len(data), digest=sha256(data))
    return MatFile(archive=archive, images=count)


def publish_digits(monkeypatch: pytest.MonkeyPatch, train: MatFile, test: MatFile) -> None:
    sets = {"svhn": DigitSet(name="svhn", train=(train,), test=test)}
    monkeypatch.setattr(thumbnet.data.svhn, "digit_sets", lambda: sets)


def digits(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {
        "X": rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8),
        "y": (1 + np.arange(count) % 10)[:, None].astype(np.uint8),
    }


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = (write_digits(tmp_path, split, digits(n), n) for split, n in (("train", 40), ("test", 20)))
    publish_digits(monkeypatch, train, test)
    out = ["--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path)]
    assert main(["train", "--preset", "svhn", *SMALL, *out, "--name", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    facts = json.loads((tmp_path / "runs" / "run" / "data.json").read_text())
    assert facts["class_names"] == [str(digit) for digit in range(10)]
    assert main(["eval", "run", *out, "--offline", "--json", "--no-plots", "--threads", "1"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["average"]["accuracy"] == result["test"]["average"]["accuracy"]
    assert np.sum(evaluated["average"]["confusion"], axis=1).tolist() == [2] * 10


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"images": digits(40)["X"], "y": digits(40)["y"]}, "the variable X should be uint8 [32, 32, 3, 40], it has"),
        ({"X": digits(40)["X"]}, "the variable y should be numbers [40, 1], it has only X"),
        ({"X": digits(40)["X"].transpose(3, 0, 1, 2), "y": digits(40)["y"]}, "it is uint8 [40, 32, 32, 3]"),
        ({"X": digits(40)["X"].astype(np.float64), "y": digits(40)["y"]}, "it is double [32, 32, 3, 40]"),
        ({"X": digits(40)["X"], "y": digits(40)["y"] - 1}, "the variable y has 0 for picture 0, expected 1 to 10"),
    ],
)
def test_svhn_with_other_variables(
    variables: dict[str, np.ndarray],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish_digits(
        monkeypatch,
        write_digits(tmp_path, "train", variables, 40),
        write_digits(tmp_path, "test", digits(20), 20),
    )
    out = ["--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path)]
    assert main(["train", "--preset", "svhn", *SMALL, *out]) == 3
    error = capsys.readouterr().err
    assert "train_32x32.mat" in error
    assert expected in error
    assert len(error.splitlines()) <= 4
    assert "Traceback" not in error
    assert not list((tmp_path / "runs").iterdir())
