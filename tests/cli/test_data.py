"""`thumbnet data`, run as a user runs it, on a data set in miniature."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import thumbnet.data
from thumbnet.cli.main import main
from thumbnet.data.description import Archive, RecordFile, RecordSet
from thumbnet.data.records import RecordFormat

LAYOUT = RecordFormat()
COUNT = 30


@pytest.fixture
def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8) for name in ("train.bin", "test.bin")}
    return {name: LAYOUT.pack(pictures, np.arange(COUNT) % 3).tobytes() for name, pictures in images.items()}


@pytest.fixture
def cache(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the set `tiny`, whose host does not answer."""
    records = [
        RecordFile(name=name, records=COUNT, digest=f"sha256:{hashlib.sha256(data).hexdigest()}")
        for name, data in files.items()
    ]
    tiny = RecordSet(
        name="tiny",
        class_names=("ant", "bee", "cat"),
        layout=LAYOUT,
        folder="tiny-bin",
        train=(records[0],),
        test=(records[1],),
        archive=Archive(url="http://127.0.0.1:9/tiny.tar.gz", size_bytes=1, digest="sha256:" + "0" * 64),
    )
    monkeypatch.setattr(thumbnet.data, "record_sets", lambda: {"tiny": tiny})
    folder = tmp_path / "cache" / "tiny-bin"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder.parent


def test_download_prints_the_folder(cache: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "download", "tiny", "--data-dir", str(cache)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{cache / 'tiny-bin'}\n"
    assert printed.err == f"tiny: from {cache / 'tiny-bin'}\n"
    assert main(["data", "download", "tiny", "--data_dir", str(cache), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tiny": str(cache / "tiny-bin")}


def test_download_with_no_source_left_exits_with_3(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "download", "tiny", "--data-dir", str(tmp_path / "empty")]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "thumbnet: error: tiny: train.bin is not in" in printed.err
    assert "cannot be reached" in printed.err
    assert "Traceback" not in printed.err


def test_offline_is_passed_on(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "download", "tiny", "--offline", "--data-dir", str(tmp_path / "empty")]) == 3
    assert "not allowed by --offline" in capsys.readouterr().err


def test_verify_checks_every_file(cache: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "verify", "--data-dir", str(cache)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"tiny: {cache / 'tiny-bin' / name}: right, 30 records" for name in ("train.bin", "test.bin")
    ]


def test_verify_names_the_wrong_record_and_exits_with_3(
    cache: Path, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    path = cache / "tiny-bin" / "test.bin"
    data = bytearray(files["test.bin"])
    data[12 * 3073] = 3
    path.write_bytes(data)
    assert main(["data", "verify", "tiny", "--data-dir", str(cache)]) == 3
    printed = capsys.readouterr()
    problem = f"{path}: record 12 (byte offset 36,876) has label 3, expected 0 to 2"
    assert printed.out.splitlines()[1] == f"tiny: {problem}"
    assert "1 of the files is missing or damaged; `thumbnet data download tiny` fetches intact ones" in printed.err
    assert main(["data", "verify", "--json", "--data-dir", str(cache)]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "tiny": [
            {"file": str(cache / "tiny-bin" / "train.bin"), "records": 30, "problem": None},
            {"file": str(path), "records": 30, "problem": problem},
        ]
    }


def test_verify_with_nothing_there_says_what_to_do(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "verify", "--data-dir", str(tmp_path / "empty")]) == 3
    assert "there is no data set to check; `thumbnet data download` fetches one" in capsys.readouterr().err


def test_show_writes_a_picture(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "mosaic.png"
    arguments = ["data", "show", "--data", "tiny", "--data-dir", str(cache), "--out", str(out), "--count", "6"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{out}\n"
    first = out.read_bytes()
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 7 * 96
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(out)
    assert [example["label"] for example in told["examples"]] == ["ant", "ant", "bee", "bee", "cat", "cat"]
    assert all(example["key"].startswith("train.bin:") for example in told["examples"])
    assert out.read_bytes() == first
    assert main([*arguments, "--seed", "1"]) == 0
    assert out.read_bytes() != first


def test_show_draws_shapes_with_any_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "show", "--data", "shapes", "--preset", "quick", "--count", "2"]) == 0
    assert (tmp_path / "shapes-mosaic.png").stat().st_size > 1000


def test_show_draws_what_a_training_without_flags_would_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def drawn(*arguments: str) -> tuple[bytes, str]:
        out = tmp_path / "mosaic.png"
        flags = ["--data", "shapes", "--count", "2", "--out", str(out), "--json"]
        assert main(["data", "show", *flags, *arguments]) == 0
        return out.read_bytes(), json.loads(capsys.readouterr().out)["preset"]

    assert drawn() == drawn("--preset", "quick")
    assert drawn()[1] == "quick"
    assert drawn("--set", "distort.crop=20")[0] != drawn()[0]
    assert main(["data", "show", "--data", "shapes", "--set", "distort.corp=20"]) == 2
    assert "did you mean 'crop'?" in capsys.readouterr().err


def test_show_draws_own_pictures_of_any_size_by_any_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8))
            image.save(tmp_path / "own" / name / f"{number}.png")
    recipe, pictures = tmp_path / "mine.toml", str(tmp_path / "own")
    recipe.write_text(f'[data]\nname = "{pictures}"\nimage_size = 40\n[distort]\ncrop = 36\n[train]\nsteps = 1\n')
    own, by_recipe = ["--data", pictures], ["--recipe", str(recipe)]
    widths = []
    for arguments in (own, [*own, "--image-size", "44"], by_recipe, [*by_recipe, "--image-size", "45"]):
        out = tmp_path / "shown.png"
        where = ["--data-dir", str(tmp_path / "cache"), "--out", str(out)]
        assert main(["data", "show", *arguments, *where, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["preset"] == ("mine" if "--recipe" in arguments else "quick")
        with Image.open(out) as picture:
            tile = np.asarray(picture)[112:208, 204:300]
        widths.append(int((tile != tile[0, 0]).any(axis=(0, 2)).sum()))
    assert widths == [3 * 32, 2 * 44, 2 * 40, 2 * 45]  # enlarged by whole numbers, on the colour of the page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["download", "tinny"], "unknown data set 'tinny' - did you mean 'tiny'?"),
        (["download", "shapes"], "shapes is drawn by the program"),
        (["verify", "shapes"], "shapes is drawn by the program"),
        (["show", "--data", "tinny"], "unknown data set 'tinny' - did you mean 'tiny'?"),
        (["show", "--preset", "clasic"], "unknown preset 'clasic' - did you mean 'classic'?"),
        (["show", "--out", "mosaic.jpg"], "the mosaic is a PNG"),
        (["show", "--out", "nowhere/mosaic.png"], "there is no such folder"),
        (["show", "--count", "0"], "'0' is not a whole number of 1 or more"),
        (["show", "--count", "201"], "at most 200 samples"),
        (["show", "--seed", "-1"], "--seed is -1"),
        (["show", "--cuont", "3"], "--count"),
        (["show", "--data", "shapes", "--image-size", "48"], "--image-size 48: the pictures of shapes are 32x32"),
        (["show", "--recipe", "nowhere.toml"], "nowhere.toml: cannot read this recipe"),
        (["show", "--recipe", "mine.toml", "--preset", "quick"], "not allowed with argument"),
        (["shwo"], "show"),
        ([], "ACTION"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_a_wrong_command_line_exits_with_2_in_a_line_or_two(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err
    assert len(printed.err.splitlines()) <= 2


def test_a_home_folder_that_the_shell_has_left_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["data", "show", "--data", "shapes", "--out=~/shown.png"]) == 0
    assert (tmp_path / "shown.png").exists()


def test_show_refuses_a_folder_as_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mosaic.png").mkdir()
    assert main(["data", "show", "--data", "shapes", "--out", str(tmp_path / "mosaic.png")]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_the_parser_and_the_data_room_import_nothing_heavy():
    code = (
        "import sys, thumbnet.cli.data, thumbnet.data, thumbnet.data.dataset, thumbnet.data.sources\n"
        "print([name for name in ('torch', 'PIL', 'rich', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
