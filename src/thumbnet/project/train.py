"""Train a network of your own, see how good it is, and ask it what pictures show.

    python train.py              the pictures in pictures/, one folder per class
    python train.py ~/flowers    pictures elsewhere, or a CSV file of paths and labels
    python train.py shapes       a built-in set, to try it out

What is trained, and for how long, and how the pictures are prepared, stands in recipe.toml.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import thumbnet
from thumbnet.config import load_recipe

HERE = Path(__file__).resolve().parent


def main(where: str | Path) -> None:
    """Train on the pictures there, evaluate, and predict a few."""
    recipe = load_recipe(HERE / "recipe.toml", {"data.name": str(where)})
    data = thumbnet.load_dataset(**dataclasses.asdict(recipe.data))  # as its section [data] says
    result = thumbnet.train(recipe, data, out=HERE / "runs")
    print(result)

    # How well each class is told from the others, on pictures that the network has not learnt from.
    # Where none were kept aside, the training pictures have to do, which says little: it tells so.
    for entry in thumbnet.evaluate(result).per_class:
        print(f"{entry.name:<16} precision {entry.precision:.0%}, recall {entry.recall:.0%}, {entry.support} pictures")

    # What the network says of some of them: a path to a picture of any size would do as well.
    network = thumbnet.load(result)
    shown = data.test or data.validation or data.train
    images, labels = shown.gather(range(min(5, len(shown))))
    for image, label in zip(images, labels, strict=True):
        prediction = network.predict(image)
        print(f"{data.train.class_names[label]}: looks like {prediction.label}, {prediction.probability:.0%} sure")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else HERE / "pictures")
    except thumbnet.ThumbnetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stopped:
        code = getattr(stopped, "exit_code", None)  # a training that saved its last step says how it ended
        print(stopped if code else "interrupted", file=sys.stderr)
        sys.exit(code or 130)
