import pytest

from thumbnet.monitor import machine

MACHINE = {"device": "cpu", "kernels": True, "amx_kernels": True, "precision": "bf16"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {},
            [
                "input: fused C kernels",
                "response normalization: fused C kernels",
                "speed network, local layers: AMX kernels",
            ],
        ),
        (
            {"amx_kernels": False},
            ["input", "patches of local layers: fused C kernels", "there is no AMX or the system"],
        ),
        (
            {"amx_kernels": False, "precision": "fp32"},
            [
                "input",
                "fused C kernels",
                "first convolutions, all of the speed network: C kernels",
                "local layers: PyTorch's own",
            ],
        ),
        ({"amx_kernels": False, "kernels": False}, ["input: NumPy", "plain PyTorch", "PyTorch's own"]),
        ({"device": "cuda"}, ["input: fused C kernels", "all networks: PyTorch's own, on cuda"]),
    ],
)
def test_says_which_engine_runs(change: dict[str, object], expected: list[str]) -> None:
    lines = machine._kernel_uses(MACHINE | change)
    assert len(lines) == len(expected)
    assert all(text in line for text, line in zip(expected, lines, strict=True))


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ("timm", None),
        ("onnx", {"onnx": "1.23", "onnxscript": None, "onnxruntime": "1.32"}),
        ("serve", {"fastapi": "0.165", "uvicorn": None, "python-multipart": "0.0.34"}),
    ],
)
def test_says_how_to_get_what_is_not_installed(extra: str, found: dict[str, str | None] | None) -> None:
    lines = machine.machine_lines(machine.describe_machine(None) | {extra: found})
    assert any(line.startswith(f"{extra} ") and f"pip install --editable '.[{extra}]'" in line for line in lines)


def test_tells_of_a_quota_of_cores() -> None:
    described = machine.describe_machine(None)
    (line,) = (
        line
        for line in machine.machine_lines(described | {"cores": 4, "cores_visible": 64})
        if line.startswith("processor")
    )
    assert ", 4 cores of 64 (CPU quota), " in line
    described |= {"cores": 2, "cores_visible": 2}
    assert "quota" not in "\n".join(machine.machine_lines(described))
