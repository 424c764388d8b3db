"""A replica of a few tiny trainings and evaluations; writes what it has into a file of its rank.

Also imported by the test, which computes the same on its own.
"""

import os
import sys
from pathlib import Path

import torch

from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.shapes import draw_shapes
from thumbnet.distributed.join import joined
from thumbnet.distributed.place import place_of
from thumbnet.distributed.replicas import Replicas
from thumbnet.distributed.team import Team
from thumbnet.engine import Precision
from thumbnet.evaluation.evaluate import predict_logits
from thumbnet.input.distort import prepare
from thumbnet.input.pipeline import TrainingInput
from thumbnet.monitor.health import GradientCheck
from thumbnet.training.optimizers import set_rates
from thumbnet.training.state import TrainingState, new_state
from thumbnet.training.step import train_step

FP32 = Precision(name="fp32", why="test")
STEPS = 4
EVALUATIONS = ((7, 2), (23, 4), (5, 5), (1, 3))
"""Examples, and images of a batch."""

CLASSIC = load_preset("classic", {"input.batch_size": 11, "optimizer.momentum": 0.9, "optimizer.learning_rate": 0.01})
SPEED = load_preset(
    "quick", {"input.batch_size": 11, "model.options.widths": [8, 8, 8], "optimizer.freeze_after.whiten": 0.5}
)


def train(recipe: Recipe, dataset: ImageDataset, replicas: Replicas) -> tuple[TrainingState, list[list[float]]]:
    """Train a few steps; return the state and what each step reports."""
    images_NHWC, _ = dataset.gather(torch.arange(50).numpy())
    state = new_state(recipe, num_classes=10, channels=3, examples=lambda _: prepare(images_NHWC, recipe.distort))
    batch_size, reports = recipe.input.batch_size, []
    team = Team(replicas, state.model, batch_size=batch_size, seconds=lambda: 100.0 * state.step + replicas.rank)
    share = replicas.share(batch_size)
    with TrainingInput(dataset, recipe.distort, recipe.input, seed=1, share=share) as batches:
        for _ in range(STEPS):
            set_rates(state.optimizer, factor=1.0, progress=state.step / STEPS)
            result = train_step(
                state, next(batches), check=GradientCheck(state.model), precision=FP32, label_smoothing=0.1, team=team
            )
            reports.append([*result.figures.tolist(), team.seconds()])
    return state, reports


def tensors_of(state: TrainingState) -> dict[str, torch.Tensor]:
    """Return everything that a step changes."""
    checkpoint = state.capture(CLASSIC)
    return {
        **{f"model.{name}": value for name, value in checkpoint.model.items()},
        **{f"average.{name}": value for name, value in (checkpoint.average or {}).items()},
        **{f"state.{name}": value for name, value in checkpoint.state.items()},
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dataset = draw_shapes()[0]
    with joined(place_of(os.environ), 60) as replicas:
        found: dict[str, object] = {"cores": sorted(os.sched_getaffinity(0))}
        found["sharers"] = replicas.sharers
        found["said"] = replicas.gather("said", f"I am {replicas.rank}")
        found["told"] = replicas.announce("told", f"from {replicas.rank}")
        found["sent"] = replicas.broadcast(b"" if replicas.rank else bytes(range(256)))
        found["empty"] = replicas.broadcast(b"")
        found["sum"] = replicas.sum(torch.tensor([1, replicas.rank])).tolist()
        for name, recipe in (("classic", CLASSIC), ("speed", SPEED)):
            state, found[f"{name} reports"] = train(recipe, dataset, replicas)
            found[name] = {key: value.clone() for key, value in tensors_of(state).items()}
            if name == "classic":
                found["logits"] = [
                    predict_logits(
                        state.model,
                        dataset.take(torch.arange(count).numpy()),
                        recipe.distort,
                        precision=FP32,
                        batch_size=batch_size,
                        replicas=replicas,
                    )
                    for count, batch_size in EVALUATIONS
                ]
    torch.save(found, folder / f"{replicas.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
