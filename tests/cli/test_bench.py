import json
from pathlib import Path

import pytest

from thumbnet.cli import bench
from thumbnet.cli.flags import Parser
from thumbnet.errors import ThumbnetError, UsageError
from thumbnet.training import measure


def run(*arguments: str) -> int:
    parser = Parser(prog="thumbnet")
    bench.add_parser(parser.add_subparsers(dest="command"))
    return bench.run(parser.parse_args(["bench", *arguments]))


def test_input_as_json_and_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "input.json"
    assert (
        run("input", "--data", "shapes", "--batch-size", "32", "--seconds", "0.2s", "--json", "--out", str(path)) == 0
    )
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert json.loads(path.read_text()) == result
    assert (result["benchmark"], result["preset"], result["data"]) == ("input", "classic", "shapes")
    assert (result["batch_size"], result["crop"]) == (32, 24)
    speed = result["images_per_second"]
    assert 0 < speed["lowest"] <= speed["median"] <= speed["highest"]
    assert result["cpu_us_per_image"] > 0
    assert result["peak_memory_mib"] > 0
    assert result["machine"].keys() == {"cpu", "cores", "python", "torch"}


def test_input_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("input", "--data", "shapes", "--seconds", "0.1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "input of classic: shapes, 24x24, batches of 128"
    assert [line.split()[0] for line in lines[1:]] == ["images/s", "processor", "memory"]


def test_a_file_that_cannot_be_written_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(measure, "measure_input", lambda *_: pytest.fail("measured"))
    for out in (tmp_path / "file" / "result.json", tmp_path):
        with pytest.raises(UsageError, match=rf"--out {out}: cannot write this file"):
            run("input", "--data", "shapes", "--out", str(out))


def test_a_usage_error_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thumbnet.engine.usable_cores", lambda *_: 2)
    for part, *wrong in (["input", "--preset", "quikc"], ["devices", "--preset", "quikc"]):
        with pytest.raises(UsageError, match="did you mean 'quick'"):
            run(part, *wrong, "--out", str(tmp_path / "new" / "result.json"))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_costs_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ThumbnetError, match="cannot write"):
        run("input", "--data", "shapes", "--seconds", "0.1", "--json", "--out", "/dev/full")
    assert json.loads(capsys.readouterr().out)["benchmark"] == "input"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["machine", "--isa", "sse"], "sse"),
        (["step", "--preset", "quikc"], "did you mean 'quick'"),
        (["inputs"], "inputs"),
        (["input", "--seconds", "soon"], "'soon' is not a duration"),
        (["input", "--preset", "clasic"], "did you mean 'classic'"),
        (["input", "--data", "cifar11"], "did you mean 'cifar1"),
        (["input", "--batch-size", "0"], "'0' is not a whole number"),
        (["devices", "--data", "shapes", "--trace", "t.json.gz"], "give a name without .gz"),
        (["devices", "--data", "shapes", "--trace", "/dev/null/t.json"], "--trace /dev/null/t.json: cannot write"),
        (["devices", "--data", "shapes", "--precision", "fp16"], "fp16"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thumbnet.engine.usable_cores", lambda *_: 2)
    with pytest.raises(UsageError, match=message):
        run(*arguments)
