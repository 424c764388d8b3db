import json
from pathlib import Path

import pytest

from thumbnet.cli.main import main


def test_the_newest_run_goes_into_its_folder(one_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--out", str(one_run), "--threads", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    path = one_run / "one" / "model.onnx"
    assert said[0] == f"run {one_run / 'one'}, step 3, averaged weights"
    assert said[1].startswith(f"{path}: ")
    assert "pictures uint8 [N, 32, 32, 3] -> probabilities float32 [N, 10]" in said[1]
    assert said[2].startswith("agrees with PyTorch: no probability differs by more than ")
    assert said[3] == f"ask it: thumbnet predict --model {path} photo.jpg"

    picture = str(one_run.parent / "shape.png")
    assert main(["predict", "--model", str(path), "--json", "--threads", "1", "--top", "10", picture]) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert (by_file["model"], by_file["step"]) == (str(path), 3)
    assert main(["predict", "--run", "one", "--out", str(one_run), "--json", "--top", "10", picture]) == 0
    by_run = json.loads(capsys.readouterr().out)
    likeliest, expected = (told["predictions"][0]["top"] for told in (by_file, by_run))
    assert {entry["class"]: entry["probability"] for entry in likeliest} == pytest.approx(
        {entry["class"]: entry["probability"] for entry in expected}, abs=1e-5
    )


def test_a_file_tells_what_it_is(one_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_run / "one" / "told.onnx"
    assert main(["export", "one", "--out", str(one_run), "--to", str(path), "--threads", "1"]) == 0
    capsys.readouterr()
    assert main(["info", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{path}: network classic, ")
    assert "from run one, step 3, average weights; data shapes" in told
    assert "[N, 32, 32, 3] -> probabilities float32 [N, 10]" in told
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["size_bytes"] == path.stat().st_size
    assert len(facts["classes"]) == 10
    assert main(["info", str(one_run / "none.onnx")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_checkpoint_weights_and_place_of_ones_choice(
    one_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"  # in the folder that is named
    words = ["export", str(one_run / "one"), "--checkpoint", "0", "--weights", "raw", "--to", str(tmp_path), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["step"], told["precision"]) == (str(path), 0, "fp32")
    assert told["size_bytes"] == path.stat().st_size
    assert max(told["difference"], told["difference_to_run"]) < 1e-5


@pytest.mark.parametrize(
    "flag", [["--run", "one"], ["--weights", "raw"], ["--precision", "bf16"], ["--checkpoint", "best"]]
)
def test_a_file_leaves_no_choice(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", "some.onnx", *flag, "photo.png"]) == 2
    assert f"--model and {flag[0]}: a file is of one checkpoint" in capsys.readouterr().err


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--out", str(tmp_path)]) == 2
    assert "there is no run here" in capsys.readouterr().err
    assert main(["predict", "--model", str(tmp_path / "model.onnx"), "photo.png"]) == 2
    assert "there is no such file: `thumbnet export` writes one" in capsys.readouterr().err
