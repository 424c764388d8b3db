"""Plain PyTorch: eager float32 with its defaults, a DataLoader with a worker per core, SGD, an averaged model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from measure import (
    AVERAGE_DECAY,
    BATCH,
    CROP,
    DROP_FACTOR,
    DROP_STEPS,
    LEARNING_RATE,
    read_task,
    say_speeds,
    say_versions,
)
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tutorial_torch import Images, build_network, endless, parameter_groups


def main() -> None:
    """Measure what was asked for."""
    task = read_task()
    import torchvision

    say_versions(torch=torch.__version__, torchvision=torchvision.__version__)
    torch.set_num_threads(task.cores)
    network = build_network()
    optimizer = torch.optim.SGD(parameter_groups(network), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, DROP_STEPS, DROP_FACTOR)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))

    def train(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        return loss.detach()

    loader = torch.utils.data.DataLoader(
        Images(task.files),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=task.cores,
        persistent_workers=True,
    )
    batches = endless(loader)
    say_speeds(task, train, batches, lambda: (torch.randn(BATCH, 3, CROP, CROP), torch.arange(BATCH) % 10))


if __name__ == "__main__":
    main()
