import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from thumbnet.evaluation import plots
from thumbnet.evaluation.metrics import Metrics, compute_metrics

CLASSES = [("a",), ("空", "花"), tuple(f"class {i}" for i in range(10)), tuple(f"class {i}" for i in range(60))]


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def drawn(metrics: Metrics) -> list[Image.Image]:
    pair = {"average": metrics, "raw": metrics}
    pngs = plots.confusion_png(metrics, "title"), plots.classes_png(pair, "title"), plots.reliability_png(pair, "title")
    return [opened(png) for png in pngs]


@pytest.mark.parametrize("classes", CLASSES, ids=len)
def test_every_plot_is_a_picture_of_sensible_size(make_metrics, classes):
    for image in drawn(make_metrics(classes)):
        assert image.format == "PNG"
        assert all(200 < side < 3000 for side in image.size)
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_pictures_of_very_many_classes_grow_no_more(make_metrics, monkeypatch):
    monkeypatch.setattr(plots, "MOST_NAMES", 30)
    for image in drawn(make_metrics(tuple(map(str, range(300))))):
        assert max(image.size) < 2100


def test_class_nobody_predicts_and_single_example():
    metrics = compute_metrics(np.array([[1.0, 0, 0]]), np.array([1]), ("a", "b", "c"))
    drawn(metrics)


def test_one_kind_of_weights_is_drawn_alone(make_metrics):
    metrics = make_metrics()
    alone, both = (
        opened(plots.reliability_png(kinds, "title")).width
        for kinds in ({"raw": metrics}, {"average": metrics, "raw": metrics})
    )
    assert alone < both
    opened(plots.classes_png({"raw": metrics}, "title"))


def test_names_are_not_taken_for_formulas(make_metrics):
    metrics = make_metrics(("$\\frac{", "a_b$", "%d {}", "[red]x"))
    for draw in (plots.classes_png, plots.reliability_png):
        opened(draw({"raw": metrics}, "$broken^ title"))
    opened(plots.confusion_png(metrics, "$broken^ title"))


def test_shade_of_the_confusion_matrix_is_the_share_of_the_row():
    # Every "a" is right; of the hundred times fewer "b" half are: their cells must not be pale for being few.
    logits = np.array([[1.0, 0.0]] * 200 + [[1.0, 0.0], [0.0, 1.0]])
    labels = np.array([0] * 200 + [1, 1])
    pixels = np.asarray(opened(plots.confusion_png(compute_metrics(logits, labels, ("a", "b")), "t")).convert("RGB"))
    for share in (1.0, 0.5, 0.0):
        shade = 255 * np.array(colormaps["Blues"](np.sqrt(share))[:3])
        near = (np.abs(pixels - shade) <= 3).all(axis=2)
        assert near.sum() > 20_000, share
