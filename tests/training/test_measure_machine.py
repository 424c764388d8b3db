import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from thumbnet import engine
from thumbnet.cli.bench_machine import INSTRUCTION_SETS
from thumbnet.config import load_preset
from thumbnet.errors import ThumbnetError
from thumbnet.models.grid import amx_ready
from thumbnet.training import measure, measure_machine


def test_a_preset_that_was_not_measured_counts_by_its_arithmetic() -> None:
    flops = measure.training_flops(load_preset("quick"))
    found = measure_machine.estimates({"quick": {"tflops": 1000 * flops / 1e12}})
    assert "classic" not in found  # another network
    assert found["quick"]["images_per_second"] == pytest.approx(1000)
    fast = measure.training_flops(load_preset("fast"))
    assert found["fast"]["images_per_second"] == pytest.approx(1000 * flops / fast)
    assert found["fast"]["after"] == "quick"


def test_batches_do_not_tell_how_long_single_pictures_take() -> None:
    found = measure_machine.estimates({"classic": {"tflops": 1.0}})
    assert "classic" in found
    assert "book" not in found  # the same network, one picture at a time


def test_the_matrix_product_and_the_input_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MATRIX_SIDE", 64)
    monkeypatch.setattr(measure_machine, "CIFAR10_IMAGES", 1000)
    assert measure.matmul_tflops("fp32", seconds=0.01) > 0
    assert measure_machine.input_speed(0.05) > 0


def test_operations_of_a_picture_by_hand() -> None:
    # The table of the tutorial's layers: 24x24 and 12x12 pixels, 5x5 kernels, then the dense layers.
    macs = 576 * 75 * 64 + 144 * 1600 * 64 + 2304 * 384 + 384 * 192 + 192 * 10
    recipe = load_preset("classic")
    assert measure.step_flops(recipe) == measure.training_flops(recipe) == 6 * macs


def test_smaller_pictures_count_for_as_long_as_they_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_preset("quick", {"schedule.resize": [[0.25, 0.5], [0.5, 0.75]]})
    whitened, first, second, third = np.array([[15, 23, 31], [7, 11, 15], [3, 5, 7], [1, 2, 3]]) ** 2  # pixels
    macs = whitened * (12 + 9 * 64) * 24 + first * 9 * 64 * (64 + 128) + second * 9 * 128 * (128 + 128)
    macs += third * 9 * 128 * 128 + 128 * 10
    assert [measure.multiply_adds(recipe, side) for side in (16, 24, 32)] == macs.tolist()
    assert measure.training_flops(recipe) == pytest.approx(6 * macs @ [0.25, 0.25, 0.5])
    assert measure.step_flops(recipe) == 6 * macs[2]
    monkeypatch.setattr(measure_machine, "load_preset", lambda name: recipe if name == "quick" else load_preset(name))
    # Steps are measured on pictures as they become, 1,000 images a second here; the training has smaller ones, too.
    steps = {"quick": measure_machine.sum_up(recipe, {"kernels": [1000.0], "plain": [500.0]}, 1.0)}
    assert steps["quick"]["tflops"] == pytest.approx(1000 * 6 * macs[2] / 1e12)
    speed = measure_machine.estimates(steps)["quick"]["images_per_second"]
    assert speed == pytest.approx(1000 * macs[2] / (macs @ [0.25, 0.25, 0.5]))


def test_what_takes_long_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def step_apart(name: str, _: float, *, kernels: bool, **__: object) -> float:
        clock[0] += 20.0 if name == "fast" and not kernels else 5.0
        return 100.0 if kernels else 50.0

    monkeypatch.setattr(measure_machine, "step_apart", step_apart)
    monkeypatch.setattr(measure_machine, "has_kernels", lambda recipe: True)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    recipes = {name: load_preset(name) for name in ("quick", "fast")}
    found = measure_machine.measure_steps(recipes, 3.0, threads=None, note=lambda _: None)
    assert found == {
        "quick": {"kernels": [100.0, 100.0], "plain": [50.0, 50.0]},
        "fast": {"kernels": [100.0, 100.0], "plain": [50.0]},
    }
    assert measure_machine.sum_up(recipes["fast"], found["fast"], 1.0)["times_plain"] == 2.0


CAPPED = """
import torch
from thumbnet import engine
from thumbnet.config import load_preset
from thumbnet.kernels import library
from thumbnet.models.grid import amx_ready, kernels_take
from thumbnet.monitor.machine import describe_machine
from thumbnet.training.measure_machine import has_kernels
assert engine.resolve_precision().name == "fp32", engine.resolve_precision()
assert "-march=x86-64-v3" in library.compiler_flags(), library.compiler_flags()
assert not amx_ready()
with torch.autocast("cpu", torch.bfloat16):  # asked for all the same
    assert not kernels_take(torch.zeros(1, 3, 32, 32))
assert has_kernels(load_preset("quick"))  # those of float32
assert torch.backends.cpu.get_cpu_capability() == "AVX2", torch.backends.cpu.get_cpu_capability()
print(describe_machine(None)["amx_kernels"], library.load_library().handle is not None)
"""


@pytest.mark.skipif(not engine.has_level("x86-64-v3"), reason="the processor has no AVX2 to be held to")
def test_under_a_cap_to_avx2_nothing_newer_is_used(tmp_path: Path) -> None:
    environment = os.environ | INSTRUCTION_SETS["avx2"] | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CAPPED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False")


def test_a_step_that_cannot_be_measured_is_told() -> None:
    with pytest.raises(ThumbnetError, match="measuring the step of nothing ended with 2"):
        measure_machine.step_apart("nothing", 0.1, kernels=True)


BELOW_AMX = """
from thumbnet.models.grid import amx_ready
from thumbnet.kernels import load_library
print(load_library().handle is not None, amx_ready())
"""


@pytest.mark.skipif(not amx_ready(), reason="there is no AMX to be held from")
def test_under_a_cap_below_amx_it_is_not_used(tmp_path: Path) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BELOW_AMX], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"
