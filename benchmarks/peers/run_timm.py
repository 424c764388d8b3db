"""The training loop of timm around the tutorial's network: its loader, optimizer, scheduler and averaged model.

Its `--channels-last` is on and, with `--precision bf16`, its `--amp --amp-dtype bfloat16`, which its training script
offers.
"""

from __future__ import annotations

import contextlib

import torch
from measure import (
    AVERAGE_DECAY,
    BATCH,
    CROP,
    DROP_FACTOR,
    DROP_STEPS,
    LEARNING_RATE,
    TRAINING_IMAGES,
    Task,
    read_task,
    say_speeds,
    say_versions,
)
from torch import Tensor, nn
from tutorial_torch import Images, build_network, distortions, endless, parameter_groups

# After tutorial_torch, which knows how to import torchvision.
import timm  # isort: skip
import timm.data  # isort: skip
import timm.optim  # isort: skip
import timm.scheduler  # isort: skip
import timm.utils  # isort: skip


def main() -> None:
    """Measure what was asked for."""
    task = read_task()
    say_versions(timm=timm.__version__, torch=torch.__version__)
    torch.set_num_threads(task.cores)
    bf16 = task.precision == "bf16"
    network = build_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = timm.optim.create_optimizer_v2(
        network, opt="momentum", lr=LEARNING_RATE, momentum=0.0, param_group_fn=parameter_groups
    )
    updates = TRAINING_IMAGES // BATCH
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched="step",
        decay_epochs=DROP_STEPS // updates,
        decay_rate=DROP_FACTOR,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    average = timm.utils.ModelEmaV3(network, decay=AVERAGE_DECAY, use_warmup=True)
    loss_of = nn.CrossEntropyLoss()
    done = 0

    def train(images: Tensor, labels: Tensor) -> Tensor:
        nonlocal done
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss: Tensor = loss_of(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        average.update(network, step=done)
        scheduler.step_update(num_updates=done)
        return loss.detach()

    batches = endless(loader(task))
    say_speeds(task, train, batches, lambda: (torch.randn(BATCH, 3, CROP, CROP), torch.arange(BATCH) % 10))


def loader(task: Task) -> torch.utils.data.DataLoader[tuple[Tensor, int]]:
    """Return timm's loader with the tutorial's distortions in place of its own, which are for ImageNet."""
    images = Images(task.files)
    made: torch.utils.data.DataLoader[tuple[Tensor, int]] = timm.data.create_loader(
        images,
        input_size=(3, CROP, CROP),
        batch_size=BATCH,
        is_training=True,
        num_workers=task.cores,
        use_prefetcher=False,
    )
    images.transform = distortions()
    return made


if __name__ == "__main__":
    main()
