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
    WARM_UP_BATCHES,
    WARM_UP_STEPS,
    images_per_second,
    read_task,
    say,
    say_memory,
    say_started,
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
        return loss

    loader = torch.utils.data.DataLoader(
        Images(task.files),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=task.cores,
        persistent_workers=True,
    )
    batches = endless(loader)
    if "whole" in task.measures:
        train(*next(batches)).item()
        say_started(task)
        speed = images_per_second(lambda: train(*next(batches)), task.seconds, warm_up=WARM_UP_STEPS)
        say("whole", images_per_second=speed)
        say_memory()
    if "step" in task.measures:
        images, labels = torch.randn(BATCH, 3, CROP, CROP), torch.arange(BATCH) % 10
        speed = images_per_second(lambda: train(images, labels), task.seconds, warm_up=WARM_UP_STEPS)
        say("step", images_per_second=speed)
    if "input" in task.measures:
        speed = images_per_second(lambda: next(batches), task.seconds, warm_up=WARM_UP_BATCHES)
        say("input", images_per_second=speed)


if __name__ == "__main__":
    main()
