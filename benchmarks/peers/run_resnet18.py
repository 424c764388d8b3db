"""A yardstick: the training step of the usual ResNet-18 for CIFAR-10 in plain PyTorch, float32 or bfloat16.

3x3 stem without pooling, widths 64, 128, 256, 512, two blocks each; 11.17 M parameters, 32x32 pixels, batch 128,
SGD with Nesterov momentum. With `--precision bf16` autocast and channels-last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from measure import BATCH, SIDE, images_per_second, read_task, say, say_versions
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


def main() -> None:
    """Measure the step."""
    task = read_task()
    say_versions(torch=torch.__version__)
    torch.set_num_threads(task.cores)
    bf16 = task.precision == "bf16"
    layout = torch.channels_last if bf16 else torch.contiguous_format
    network = build_network().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=layout)
    labels = torch.arange(BATCH) % 10

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    say("step", images_per_second=images_per_second(train, task.seconds, warm_up=1))


class Block(nn.Module):
    """Two 3x3 convolutions around which the input passes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.straight = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return F.relu(self.straight(x) + self.around(x))


def build_network() -> nn.Sequential:
    """Return ResNet-18 for 10 classes of 32x32 pictures."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for width in WIDTHS:
        layers += [Block(inputs, width, 1 if width == inputs else 2), Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


if __name__ == "__main__":
    main()
