import importlib.util
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from thumbnet.models.classic import build_classic
from thumbnet.models.describe import describe_layers

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return load(FOLDER / "peers.py")


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    return load(FOLDER / "peers" / "measure.py")


def turn(whole: float, step: float = 0.0) -> list[dict[str, object]]:
    return [
        {"measure": "versions", "python": "3.11", "torch": "2.13"},
        {"measure": "start", "seconds": 4.0},
        {"measure": "whole", "images_per_second": whole},
        {"measure": "memory", "mib": 500.0},
        {"measure": "step", "images_per_second": step or 2 * whole},
        {"measure": "input", "images_per_second": 9 * whole},
    ]


def test_results_are_found_among_other_lines(peers: ModuleType) -> None:
    text = 'loading\n{"measure": "whole", "images_per_second": 5.5}\n{"level": 1}\n\n{"measure": "memory", "mib": 1}\n'
    assert peers.parse(text) == [{"measure": "whole", "images_per_second": 5.5}, {"measure": "memory", "mib": 1}]
    assert peers.parse("") == []


def test_figures_of_a_turn(peers: ModuleType) -> None:
    assert peers.values_of(turn(100.0)) == {
        "start_seconds": 4.0,
        "whole": 100.0,
        "memory_mib": 500.0,
        "step": 200.0,
        "input": 900.0,
    }
    assert peers.in_short(turn(1234.5)).startswith("start_seconds 4, whole 1,234")


def test_each_round_begins_with_another_peer(peers: ModuleType) -> None:
    found = list(peers.turns(["a", "b", "c"], 2, [0, 1]))
    assert found[:4] == [("a", [0, 1]), ("a", [1]), ("b", [0, 1]), ("b", [1])]
    assert [name for name, cores in found if len(cores) == 2] == ["a", "b", "c", "b", "c", "a"]
    assert list(peers.turns(["a"], 2, [3])) == [("a", [3]), ("a", [3])]


def test_a_figure_over_the_rounds(peers: ModuleType) -> None:
    found = peers.over_rounds([3.0, 1.0, 8.0])
    assert found == {"median": 3.0, "lowest": 1.0, "highest": 8.0, "n": 3, "values": [3.0, 1.0, 8.0]}
    assert peers.ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        peers.ratios([1.0], [])


def test_the_result_compares_round_by_round(peers: ModuleType) -> None:
    chosen = {name: peers.PEERS[name] for name in ("thumbnet", "torch", "resnet18")}
    resnet = [{"measure": "versions", "torch": "2.13"}, {"measure": "step", "images_per_second": 80.0}]
    lines = {
        "thumbnet": {2: [turn(4000.0), turn(3000.0), turn(5000.0)], 1: [turn(2000.0)[:4]] * 3},
        "torch": {2: [turn(500.0), turn(600.0), turn(500.0)], 1: [turn(250.0)[:4]] * 3},
        "resnet18": {2: [resnet] * 3},
    }
    result = peers.result_of(chosen, lines, 3, 2.0)
    assert json.loads(json.dumps(result)) == result
    torch = result["peers"]["torch"]
    # By round 8, 5 and 10 times: not the ratio of the medians.
    assert torch["thumbnet_times"]["whole"]["values"] == [8.0, 5.0, 10.0]
    assert torch["thumbnet_times"]["whole"]["median"] == 8.0
    assert torch["scaling"]["values"] == [2.0, 2.4, 2.0]
    assert torch["versions"] == {"python": "3.11", "torch": "2.13"}
    assert set(torch["cores"]["1"]) == {"start_seconds", "whole", "memory_mib"}
    assert "thumbnet_times" not in result["peers"]["thumbnet"]
    assert "scaling" not in result["peers"]["resnet18"]
    assert result["peers"]["resnet18"]["estimated_hours_to_96_percent"] == pytest.approx(33.6, rel=0.01)


def test_the_estimate_for_resnet18_by_hand(peers: ModuleType) -> None:
    # 32.3e15 operations at 6 x 0.5554e9 a picture are 9.69 million pictures: at 1,000 a second, 2.69 hours.
    assert peers.resnet18_hours(1000.0) == pytest.approx(2.69, abs=0.005)


def test_a_plot_is_drawn(peers: ModuleType) -> None:
    chosen = {name: peers.PEERS[name] for name in ("thumbnet", "torch")}
    lines = {name: {2: [turn(400.0), turn(500.0)], 1: [turn(200.0)[:4]] * 2} for name in chosen}
    assert peers.plot(peers.result_of(chosen, lines, 2, 2.0)).startswith(b"\x89PNG")


def test_every_peer_has_its_script_and_pinned_packages(peers: ModuleType) -> None:
    for peer in peers.PEERS.values():
        assert (FOLDER / "peers" / peer.script).exists()
        if peer.requirements:
            lines = (FOLDER / "peers" / peer.requirements).read_text().splitlines()
            assert all("==" in line for line in lines if not line.startswith("#"))
            assert any("==" in line for line in lines)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_no_peer_emulates_arithmetic(peers: ModuleType, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = types.SimpleNamespace(name=precision)
    monkeypatch.setattr("thumbnet.engine.resolve_precision", lambda: found)
    suited = peers.suited(peers.PEERS)
    if precision == "bf16":
        assert suited == peers.PEERS
        return
    assert set(peers.PEERS) - set(suited) == {"tensorflow-bf16", "resnet18-bf16"}
    assert {peer.precision for peer in suited.values()} == {"auto", "fp32"}
    assert "bf16" not in suited["timm"].title
    assert list(peers.suited({"torch": peers.PEERS["torch"]})) == ["torch"]


def test_cores_that_cannot_be_chosen_are_told(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(SystemExit, match="takes Linux and the program taskset"):
        peers.all_cores()


def test_for_scaling_the_whole_alone_is_measured(peers: ModuleType) -> None:
    command = peers.command_of(peers.PEERS["timm"], "python", data=Path("d"), seconds=2.0, scaling=True)
    assert command[2:] == ["--data", "d", "--seconds", "2.0", "--measures", "whole", "--precision", "bf16"]
    command = peers.command_of(peers.PEERS["resnet18"], "python", data=Path("d"), seconds=2.0, scaling=False)
    assert command[command.index("--measures") + 1] == "step"


def test_a_peer_that_fails_is_shown(peers: ModuleType) -> None:
    core = sorted(os.sched_getaffinity(0))[:1]
    with pytest.raises(SystemExit, match=r"(?s)out of order.*ended with 3"):
        peers.run([sys.executable, "-c", "import sys; print('out of order', file=sys.stderr); sys.exit(3)"], core)


def test_a_peer_runs_on_its_cores(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    core = sorted(os.sched_getaffinity(0))[:1]
    program = (
        "import os, json; cores = sorted(os.sched_getaffinity(0));"
        "print(json.dumps({'measure': 'cores', 'cores': cores, 'threads': os.environ.get('OMP_NUM_THREADS')}))"
    )
    assert peers.run([sys.executable, "-c", program], core) == [{"measure": "cores", "cores": core, "threads": None}]


def test_speed_is_calls_over_time_without_the_warm_up(measure: ModuleType) -> None:
    pauses = iter([0.2, *[0.01] * 1000])
    speed = measure.images_per_second(lambda: time.sleep(next(pauses)), 0.05, images=10, warm_up=1)
    assert 0 < speed <= 1000
    calls = []
    measure.images_per_second(lambda: calls.append(1), 0.0, warm_up=2)
    assert len(calls) == 2 + measure.LEAST_CALLS


def test_records_as_every_peer_reads_them(measure: ModuleType, tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (4, 3073), np.uint8)
    records[:2].tofile(tmp_path / "one.bin")
    records[2:].tofile(tmp_path / "two.bin")
    images, labels = measure.read_records([tmp_path / "one.bin", tmp_path / "two.bin"])
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == records[:, 0].tolist()
    assert images[3, 2, 31, 31] == records[3, -1]


def test_memory_of_a_process_and_its_children(measure: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n")
    (tmp_path / "smaps_rollup").write_text(
        "Rss: 900 kB\nPrivate_Clean:  256 kB\nPrivate_Dirty: 256 kB\nShared_Dirty: 1 kB\n"
    )
    assert measure.peak_mib(tmp_path) == 2.0
    assert measure.private_mib(tmp_path) == 0.5
    assert measure.private_mib(tmp_path / "gone") == 0.0
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert Path(f"/proc/{child.pid}") in measure.children()
    finally:
        child.communicate(b"\n")


def test_thumbnets_window_is_between_two_steps(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "measure", measure)
    script = load(FOLDER / "peers" / "run_thumbnet.py")
    rows = [{"step": 1, "train_s": 2.0}, {"step": 20, "train_s": 3.0}, {"step": 220, "train_s": 8.0}]
    assert script.speed_between(rows, 20, 220) == 200 * 128 / 5.0


@pytest.fixture
def tutorial_torch(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the network of the PyTorch peers without torchvision, which is not installed here."""
    monkeypatch.setitem(sys.modules, "measure", measure)
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchvision.transforms"].v2 = None
    return load(FOLDER / "peers" / "tutorial_torch.py")


def test_the_peers_network_is_the_tutorials(tutorial_torch: ModuleType) -> None:
    """With the weights of our network it computes the same, though from other layers."""
    classic = build_classic(num_classes=10, crop=24)
    network = tutorial_torch.build_network()
    names = ("conv1", "conv2", "local3", "local4", "softmax_linear")
    with torch.no_grad():
        for name, layer in zip(names, tutorial_torch.learning(network), strict=True):
            weight = classic.get_submodule(name).weight
            if name == "local3":  # it sees height, width, channel; PyTorch flattens channel, height, width
                weight = weight.reshape(384, 6, 6, 64).permute(0, 3, 1, 2).flatten(1)
            layer.weight.copy_(weight)
            layer.bias.copy_(classic.get_submodule(name).bias)
        images = torch.randn(8, 3, 24, 24)
        torch.testing.assert_close(network(images), classic(images), rtol=1e-3, atol=1e-4)
    decayed, others = tutorial_torch.parameter_groups(network)
    assert [tuple(weight.shape) for weight in decayed["params"]] == [(384, 2304), (192, 384)]
    assert (decayed["weight_decay"], len(others["params"])) == (0.004, 8)


def test_the_peers_distortions(tutorial_torch: ModuleType) -> None:
    image = torch.rand(3, 24, 24) * 255
    changed = tutorial_torch.brighten(image) - image
    assert changed.std() < 1e-4
    assert changed.abs().max() <= 63
    stretched = tutorial_torch.stretch(image)
    torch.testing.assert_close(stretched.mean((1, 2)), image.mean((1, 2)))
    assert 0.2 <= stretched.std() / image.std() <= 1.8
    values = tutorial_torch.standardize(image)
    assert values.mean().abs() < 1e-5
    assert values.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert not tutorial_torch.standardize(torch.full((3, 24, 24), 7.0)).any()


def test_resnet18_is_the_usual_one(peers: ModuleType, measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "measure", measure)
    network = load(FOLDER / "peers" / "run_resnet18.py").build_network()
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962
    layers = describe_layers(network, (3, 32, 32))
    assert sum(layer.multiply_adds for layer in layers) == peers.RESNET18_MULTIPLY_ADDS
