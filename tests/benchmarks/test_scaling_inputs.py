import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def inputs() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("scaling_inputs")


def test_gradients_are_ready_from_the_last_layer_to_the_first(inputs) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 512), torch.nn.Linear(512, 2))
    images = torch.randn(64, 256)
    named = [(name, value) for name, value in layers.named_parameters() if name.endswith("weight")]
    found = inputs.ready_times(lambda: layers(images).sum().backward(), named)
    assert [entry["name"] for entry in found] == ["2.weight", "1.weight", "0.weight"]
    assert [entry["bytes"] for entry in found] == [4 * 2 * 512, 4 * 512 * 512, 4 * 512 * 256]
    assert all(0 < entry["ready"] <= 1 for entry in found)


def test_processes_of_one_machine_add_up(inputs, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "SIZES", (1024, 65536))
    monkeypatch.setattr(inputs, "LEAST_S", 0.01)
    found = inputs.loopback(2)
    assert found["replicas"] == 2
    assert [message["bytes"] for message in found["messages"]] == [1024, 65536]
    assert all(message["seconds"] > 0 and message["processor_s"] > 0 for message in found["messages"])


def test_a_replica_that_fails_is_told(inputs) -> None:
    failing = [subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"], stdout=subprocess.PIPE, text=True)]
    with pytest.raises(SystemExit, match="a replica failed"):
        inputs.gather(failing)


def test_the_mean_of_replicas_is_kept(inputs) -> None:
    said = [[{"bytes": 8, "seconds": 1.0, "processor_s": 0.5}], [{"bytes": 8, "seconds": 3.0, "processor_s": 0.0}]]
    processes = [
        subprocess.Popen([sys.executable, "-c", f"print({json.dumps(json.dumps(rows))})"], stdout=-1, text=True)
        for rows in said
    ]
    assert inputs.gather(processes) == [{"bytes": 8, "seconds": 2.0, "processor_s": 0.25}]


def test_links_are_left_out_where_there_are_no_hosts(inputs, monkeypatch, capsys) -> None:
    monkeypatch.setattr(inputs.hosts, "why_not", lambda: "no root")
    assert inputs.links() == []
    assert capsys.readouterr().err == "links left out: no root\n"


def test_memory_of_an_epoch(inputs, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "EXAMPLES", 1000)
    found = inputs.epoch_memory()
    # The order: int64. Classic draws top, left and flip in a byte each, brightness and contrast in four bytes each.
    assert (found["order_bytes_per_example"], found["draw_bytes_per_example"]) == (8, 11)


def test_a_checkpoint_of_classic_holds_weights_and_averages(inputs) -> None:
    found = inputs.save_time()
    assert found["bytes"] == pytest.approx(2 * 4 * 1_068_298, rel=0.01)
    assert found["seconds"] > 0


def test_the_step_of_a_preset_in_parts(inputs, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "ROUNDS", 1)
    threads = torch.get_num_threads()
    try:
        found = inputs.measure_step("classic")
    finally:
        torch.set_num_threads(threads)
    assert [step["images"] for step in found["steps"]] == [128, 64, 32, 16, 8, 4]
    assert all(step["processor_s"] > 0 for step in found["steps"])
    assert sum(gradient["bytes"] for gradient in found["gradients"]) == 4 * 1_068_298
    assert {gradient["name"].partition(".")[0] for gradient in found["gradients"][:2]} == {"softmax_linear"}
    assert {gradient["name"].partition(".")[0] for gradient in found["gradients"][-2:]} == {"conv1"}
