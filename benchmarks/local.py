"""A locally connected layer against a loop over its positions, and against a convolution of the same multiply-adds.

    python benchmarks/local.py

Forward and backward of the first such layer of cuda-convnet's nets, in the arithmetic that the machine chooses. The
three take turns, so that what else the machine does meets them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet import engine
from thumbnet.models.layers import LocallyConnected

RESULT = Path(__file__).parent / "results" / "local.json"
BATCH = 128
LAYERS = {"11pct": (64, 64, 8), "13pct": (64, 32, 6)}
"""Net -> input channels, output channels and side of its layer local3."""


class PositionLoop(nn.Module):
    """The same layer as one dense layer for each position, in a Python loop."""

    def __init__(self, layer: LocallyConnected) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Connect."""
        side, kernel, outputs = self.layer.side, self.layer.kernel, self.layer.outputs
        padded = F.pad(images_NCHW, (kernel // 2,) * 4).permute(0, 2, 3, 1)
        biases = self.layer.bias.view(side * side, outputs)
        columns = [
            F.linear(
                padded[:, row : row + kernel, column : column + kernel].flatten(1),
                self.layer.weight[row * side + column].T,
                biases[row * side + column],
            )
            for row in range(side)
            for column in range(side)
        ]
        return torch.stack(columns, dim=1).view(-1, side, side, outputs).permute(0, 3, 1, 2)


def main() -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each (15)")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file of the result")
    args = parser.parse_args()
    engine.prepare()
    precision = engine.resolve_precision()
    result: dict[str, Any] = {"benchmark": "local", "batch": BATCH, "precision": precision.name}
    result["threads"] = torch.get_num_threads()
    for net, (inputs, outputs, side) in LAYERS.items():
        result[net] = measure(inputs, outputs, side, precision, args.rounds)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


def measure(inputs: int, outputs: int, side: int, precision: engine.Precision, rounds: int) -> dict[str, Any]:
    """Return median milliseconds of forward and backward of each form, with their spread, and the two ratios."""
    layer = LocallyConnected(inputs, outputs, kernel=3, side=side, std=0.04)
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    forms = {"batched": layer, "loop": PositionLoop(layer), "convolution": convolution}
    images = torch.randn(BATCH, inputs, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(BATCH, outputs, side, side).contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for round_number in range(rounds + 2):  # the first two warm up
        for name, form in forms.items():
            form.zero_grad(set_to_none=True)
            images.grad = None
            started = time.perf_counter()
            with precision.autocast():
                form(images).float().backward(gradient)
            if round_number >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "layer": f"{inputs} -> {outputs}, 3x3, {side}x{side}",
        "multiply_adds": layer.weight.numel(),
        "ms": {name: {"median": medians[name], "lowest": min(v), "highest": max(v)} for name, v in times.items()},
        "loop_over_batched": round(medians["loop"] / medians["batched"], 2),
        "batched_over_convolution": round(medians["batched"] / medians["convolution"], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
