"""`thumbnet serve`: which network answers, and what is refused before it starts."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from thumbnet.cli.main import main


def test_a_run_answers_as_predict_does(one_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = one_run.parent / "shape.png"
    assert main(["predict", "--out", str(one_run), "--json", "--top", "10", str(picture)]) == 0
    expected = json.loads(capsys.readouterr().out)["predictions"][0]["top"]
    words = [
        sys.executable,
        "-m",
        "thumbnet",
        "serve",
        "--out",
        str(one_run),
        "--port",
        "0",
        "--threads",
        "1",
        "--quiet",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("serving at ").strip()
            assert url.startswith("http://127.0.0.1:"), process.communicate()
            with urllib.request.urlopen(f"{url}/predict?top=10", picture.read_bytes(), timeout=60) as reply:
                said = json.load(reply)
            with urllib.request.urlopen(f"{url}/model", timeout=60) as reply:
                facts = json.load(reply)
            process.terminate()
            told = process.communicate(timeout=60)[1].splitlines()
        finally:
            process.kill()
    assert {entry["class"]: entry["probability"] for entry in said["top"]} == pytest.approx(
        {entry["class"]: entry["probability"] for entry in expected}, abs=1e-5
    )
    assert (facts["run"], facts["step"], facts["data"]) == ("one", 3, "shapes")
    assert process.returncode == 0
    assert told[0] == f"run {one_run / 'one'}, step 3, averaged weights; exporting it"
    assert told[-1] == "ended after 2 requests"
    assert not [line for line in told if "HTTP/1.1" in line]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["none.onnx"], 2, "there is no such file"),
        (["none.onnx", "--weights", "raw"], 2, "--weights goes with a run"),
        (["none.onnx", "--checkpoint", "best"], 2, "--checkpoint goes with a run"),
        (["nothing"], 2, "nothing"),
        (["--port", "65536"], 2, "no port, 0 to 65535"),
        (["--port", "http"], 2, "no port, 0 to 65535"),
        (["--host", "192.0.2.1"], 2, "--host 192.0.2.1: cannot listen there"),
        (["--at-once", "0"], 2, "not a whole number of 1 or more"),
        (["--max-mb", "-1"], 2, "not a whole number of 1 or more"),
    ],
)
def test_what_cannot_be_served_is_told(
    one_run: Path, arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = [] if "--port" in arguments else ["--port", "0"]
    assert main(["serve", *arguments, *port, "--out", str(one_run)]) == code
    assert told in capsys.readouterr().err


def test_a_missing_package_is_named(
    one_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--out", str(one_run)]) == 2
    told = capsys.readouterr().err
    assert "servers need the package uvicorn" in told
    assert "pip install --editable '.[serve]'" in told


def test_a_damaged_file_is_told_before_anybody_asks(one_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_run.parent / "bad.onnx"
    path.write_bytes(b"no network")
    assert main(["serve", str(path), "--port", "0"]) == 2
    assert "not a model of `thumbnet export`" in capsys.readouterr().err
