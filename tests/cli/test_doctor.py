import json

import pytest

from thumbnet import engine
from thumbnet.cli.main import main


def test_says_what_was_chosen_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--data-dir", "/somewhere"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "cpu", "threads", "precision", "why", "cache"} <= set(machine)
    assert machine["cache"] == "/somewhere"
    assert machine["precision"] in ("fp32", "bf16")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert machine["why"] in text
    assert machine["kernels_why"] in text


@pytest.mark.parametrize("isa", ["AVX2", "avx512_core"])
def test_bf16_is_never_chosen_where_the_instructions_are_capped(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    precision = engine.resolve_precision()
    assert precision.name == "fp32"
    assert isa.upper() in precision.why


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx2"}, "fp32"), ({"avx2", "avx512f"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")],
)
def test_the_processor_decides(features: set[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(engine, "cpu_features", lambda: frozenset(features))
    assert engine.resolve_precision().name == expected
    assert engine.resolve_precision("fp32").name == "fp32"


@pytest.mark.parametrize("isa", ["AVX512_CORE_BF16", "AVX512_CORE_FP16"])
def test_a_cap_below_amx_is_not_told_as_amx(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(engine, "cpu_features", lambda: frozenset({"avx512_bf16", "amx_bf16"}))
    precision = engine.resolve_precision()
    assert (precision.name, precision.why) == ("bf16", "the processor has AVX-512 bf16 instructions")


def test_says_that_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["doctor"]) == 0
    assert "compiler   none: gcc would compile the kernels" in capsys.readouterr().out
