import gzip
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from thumbnet.config import load_preset, recipe_to_dict

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("readme")


def test_the_readme_says_what_the_results_say(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_results(text) == text, "run `python benchmarks/readme.py`"


def test_what_stands_around_the_results_stays(readme: ModuleType) -> None:
    text = f"before\n{readme.BEGIN}stale figures\n{readme.END}after\n"
    written = readme.with_results(text)
    assert written.startswith(f"before\n{readme.BEGIN}")
    assert written.endswith(f"{readme.END}after\n")
    assert "stale figures" not in written


def spread(value: float) -> dict[str, float]:
    return {"median": value, "lowest": value - 1, "highest": value + 1}


def peers_result() -> dict[str, object]:
    figures = {
        "whole": spread(4000),
        "step": spread(5000),
        "input": spread(90000),
        "memory_mib": spread(500),
        "start_seconds": spread(2.5),
    }
    other = {name: spread(found["median"] / 8) for name, found in figures.items()}
    return {
        "batch_size": 128,
        "rounds": 5,
        "machine": {"cores": 2, "precision": "bf16"},
        "peers": {
            "thumbnet": {"title": "thumbnet", "versions": {"thumbnet": "1"}, "cores": {"2": figures}},
            "torch": {
                "title": "plain PyTorch",
                "versions": {"python": "3.11", "torch": "2.13"},
                "cores": {"2": other, "1": other},
                "scaling": spread(1.75),
                "thumbnet_times": {"whole": spread(8)},
            },
            "resnet18": {
                "title": "ResNet-18",
                "precision": "fp32",
                "versions": {},
                "cores": {"2": {"step": spread(80)}},
                "estimated_hours_to_96_percent": 33.6,
            },
        },
    }


def machine_result(precision: str) -> dict[str, object]:
    presets = {"slow": {"seconds": 600.0, "after": "slow"}, "quick": {"seconds": 40.0, "after": "quick"}}
    guessed = {"huge": {"seconds": 9000.0, "after": "slow"}}
    machine = {"precision": precision, "cpu": "Old One", "features": ["avx2"], "cores": 2}
    return {"machine": machine, "presets": presets | guessed}


def test_the_peers_table(readme: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("readme_figures.RESULTS", tmp_path)
    assert readme.peer_table() == []
    (tmp_path / "peers.json").write_text(json.dumps(peers_result()))
    lines = readme.peer_table()
    peer = "| plain PyTorch | 500 (499 to 501) | 8.0 x as fast (7.0 to 9.0) | 625 | 11,250 (11,249 to 11,251) "
    assert f"{peer}| 62 MiB | 0.3 s | 1.75 x |" in lines
    assert "| thumbnet | 4,000 (3,999 to 4,001) |  | 5,000 | 90,000 (89,999 to 90,001) | 500 MiB | 2.5 s |  |" in lines
    (resnet18,) = (line for line in lines if "ResNet-18" in line)
    assert "80 images/s in fp32, which would make 33.6 h to 96 %" in resnet18
    assert "estimated" in resnet18
    assert any("thumbnet computes in bf16," in line and "python 3.11, torch 2.13." in line for line in lines)
    assert all(line.count("|") == 9 for line in lines if line.startswith("|"))


def test_the_resnet18_that_was_trained(readme: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("readme_figures.RESULTS", tmp_path)
    assert readme.trained_resnet18() == ""
    short = {"epochs": 4, "accuracy": 0.871, "view_accuracy": 0.8765, "train_seconds": 1200.0}
    long = {"epochs": 18, "accuracy": 0.941, "view_accuracy": 0.945, "train_seconds": 5400.0}
    (tmp_path / "resnet18.json").write_text(json.dumps({"precision": "bf16", "runs": [short, long]}))
    (tmp_path / "peers.json").write_text(json.dumps(peers_result()))
    (line,) = (line for line in readme.peer_table() if "ResNet-18" in line)
    assert line.endswith(
        " Trained here in bf16, each length from the start (n = 1): "
        "87.10 %, with the mirror image 87.65 %, after 4 epochs in 20.0 min; "
        "94.10 %, with the mirror image 94.50 %, after 18 epochs in 90.0 min."
    )


def test_times_by_the_steps_alone(readme: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("readme_figures.RESULTS", tmp_path)
    assert readme.machine_times() == []
    (tmp_path / "machine.json").write_text(json.dumps(machine_result("bf16")))
    # What was only estimated from another preset's arithmetic is left out.
    assert readme.machine_times() == [
        "By the speed of the steps alone (`thumbnet bench`) training takes: quick 40 s, slow 10.0 min."
    ]


def preset_result(name: str = "strong") -> dict[str, object]:
    return {
        "preset": name,
        "n": 2,
        "accuracy": {"raw": {"mean": 0.9376, "deviation": 0.001}},
        "view_accuracy": {"raw": {"mean": 0.95, "deviation": 0.0014}},
        "views": "shifts",
        "views_share": 0.25,
        "train_seconds": {"mean": 630.0, "lowest": 600.0, "highest": 660.0, "n": 2},
        "test_seconds": {"mean": 10.5},
        "start_seconds": {"mean": 2.44},
        "images_per_second": {"mean": 1234.5},
        "share_of_limit": 0.556,
        "pflop": 1.2345,
        "memory_mib": 1536.0,
        "step_ratio_to_plain": 2.31,
    }


def test_the_row_of_a_preset(readme: ModuleType) -> None:
    assert readme.preset_row(preset_result()) == (
        "| strong | 93.76 % ± 0.10; over 6 views of the unsure 25 % 95.00 % ± 0.14 (n = 2) "
        "| 10.5 min (10.0 min to 11.0 min) | 2.4 s, 10.5 s | 1,234, 2.3 x plain, 56 % of the limit | 1.23 "
        "| 1.5 GiB | `thumbnet train --preset strong` |"
    )


def test_the_command_says_where_a_preset_resized_otherwise(readme: ModuleType) -> None:
    resized = preset_result() | {"resize": [[0.25, 0.5]]}
    assert "| `thumbnet train --preset strong --set 'schedule.resize=[[0.25, 0.5]]'` |" in readme.preset_row(resized)


def test_a_single_seed_has_no_deviation(readme: ModuleType) -> None:
    accuracy = readme.accuracy_of(preset_result() | {"n": 1})
    assert accuracy == "93.76 %; over 6 views of the unsure 25 % 95.00 %"


def test_a_row_says_how_many_seeds_were_timed(readme: ModuleType) -> None:
    one = {"mean": 630.0, "lowest": 630.0, "highest": 630.0, "n": 1}
    row = readme.preset_row(preset_result() | {"train_seconds": one})
    assert "| 10.5 min (1 of 2 timed, the others had fewer cores) | 2.4 s, 10.5 s |" in row


@pytest.mark.parametrize(
    ("engines", "cores"),
    [
        (["bf16 (the processor has AMX bf16 matrix units), 1 thread, fused C kernels"], "on 1 core"),
        (["bf16 (asked for), 2 cores, fused C kernels", "bf16 (asked for), 1 cores, plain"], "on 1 or 2 cores"),
    ],
)
def test_the_cores_of_a_run_by_its_log(readme: ModuleType, tmp_path: Path, engines: list[str], cores: str) -> None:
    lines = [f"engine: {engine}\nstep 1/2  32 threads, no engine" for engine in engines]
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert readme.cores_of(tmp_path / "log.txt.gz") == cores


def test_the_command_says_where_a_run_was_shorter_than_its_preset(readme: ModuleType) -> None:
    recipe = recipe_to_dict(load_preset("cuda-convnet-11pct"))
    assert readme.command_of(recipe) == "thumbnet train --preset cuda-convnet-11pct"
    recipe["train"]["epochs"] = 200.0
    recipe["schedule"]["at_epochs"] = [180.0, 190.5]
    shorter = "--epochs 200 --set 'schedule.at_epochs=[180,190.5]'"
    assert readme.command_of(recipe) == f"thumbnet train --preset cuda-convnet-11pct {shorter}"
    assert readme.command_of(recipe_to_dict(load_preset("classic"))) == "thumbnet train --preset classic"


def test_what_was_trained_without_newer_instructions(
    readme: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("readme_figures.RESULTS", tmp_path)
    assert readme.without_bf16() == []
    (tmp_path / "avx2").mkdir()
    (tmp_path / "avx2" / "machine.json").write_text(json.dumps(machine_result("fp32")))
    machine = {"machine": {"cpu": "Old One", "features": ["avx2"], "cores": 2}}
    (tmp_path / "avx2" / "preset-quick.json").write_text(json.dumps(preset_result("quick") | machine))
    peers = peers_result()
    peers["machine"] |= machine["machine"] | {"precision": "fp32"}
    (tmp_path / "avx2" / "peers.json").write_text(json.dumps(peers))
    trained = {"epochs": 3, "accuracy": 0.871, "view_accuracy": 0.8765, "train_seconds": 3600.0}
    resnet18 = {"precision": "fp32", "cpu": "Old One", "threads": 2, "runs": [trained]}
    (tmp_path / "avx2" / "resnet18.json").write_text(json.dumps(resnet18))
    lines = readme.without_bf16()
    assert lines[:4] == [
        "### Without bf16",
        "",
        "On a processor without bf16 and AVX-512, 2 cores of an Old One, everything in float32 "
        "(`benchmarks/results/avx2/`):",
        "",
    ]
    assert readme.preset_row(json.loads((tmp_path / "avx2" / "preset-quick.json").read_text())) in lines
    assert "| thumbnet | 4,000 (3,999 to 4,001) |  | 5,000 | 90,000 (89,999 to 90,001) | 500 MiB | 2.5 s |  |" in lines
    assert "By the speed of the steps alone (`thumbnet bench`) training takes: quick 40 s, slow 10.0 min." in lines
    assert lines[-1] == (
        "The usual ResNet-18 in plain PyTorch. Trained here in fp32, each length from the start (n = 1): 87.10 %, "
        "with the mirror image 87.65 %, after 3 epochs in 60.0 min. It was not trained for as long as 94 % would take."
    )
    assert not any("peers.png" in line for line in lines)
    machine["machine"]["features"] = ["amx_bf16", "avx2"]
    (tmp_path / "avx2" / "preset-quick.json").write_text(json.dumps(preset_result("quick") | machine))
    with pytest.raises(ValueError, match=r"avx2/preset-quick\.json is of Old One with amx_bf16, avx2"):
        readme.without_bf16()


@pytest.mark.parametrize("changed", [{"cpu": "Another"}, {"threads": 4}])
def test_results_of_several_machines_are_not_put_together(
    readme: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, object]
) -> None:
    monkeypatch.setattr("readme_figures.RESULTS", tmp_path)
    assert readme.insist_one_processor("") == ""
    (tmp_path / "machine.json").write_text(json.dumps(machine_result("fp32")))
    resnet18 = {"cpu": "Old One", "threads": 2}
    (tmp_path / "resnet18.json").write_text(json.dumps(resnet18))
    assert readme.insist_one_processor("") == "2 cores of an Old One"
    (tmp_path / "resnet18.json").write_text(json.dumps(resnet18 | changed))
    with pytest.raises(ValueError, match=r"several machines.*\n.*resnet18\.json: . cores of an "):
        readme.insist_one_processor("")


def test_times_to_an_accuracy(readme: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("readme_figures.RESULTS", tmp_path)
    assert readme.times_to() == []
    for name, accuracy, several, seconds in [
        ("slow", 0.945, None, 900.0),
        ("quick", 0.88, 0.89, 35.0),
        ("fast", 0.935, 0.943, 240.0),
    ]:
        preset = {
            "preset": name,
            "accuracy": {"average": {"mean": accuracy}, "raw": {"mean": 0.99}},
            "view_accuracy": several and {"average": {"mean": several}},
            "train_seconds": {"mean": seconds},
        }
        (tmp_path / f"preset-{name}.json").write_text(json.dumps(preset))
    # Of those that get there the quickest, by either way of looking; nothing reaches 95 %.
    (line,) = readme.times_to()
    assert line.endswith(
        "from a single view: 86 % in 35 s (quick), 94 % in 15.0 min (slow), 95 % not, 96 % not; "
        "over several views: 86 % in 35 s (quick), 94 % in 4.0 min (fast), 95 % not, 96 % not."
    )
