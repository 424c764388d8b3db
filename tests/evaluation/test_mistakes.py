import csv
import io

import numpy as np
import pytest
from PIL import Image

from thumbnet.evaluation import mistakes
from thumbnet.evaluation.metrics import Metrics, compute_metrics


@pytest.fixture
def metrics() -> Metrics:
    """Of four pictures, a cat taken for a dog, and, less surely, a dog for a cat."""
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    return compute_metrics(logits, np.array([0, 1, 0, 1]), ("cat", "dog"))


def test_the_list_names_the_pictures(metrics, pictures):
    rows = list(csv.reader(io.StringIO(mistakes.mistakes_csv(metrics, pictures(4)))))
    assert rows[0] == ["picture", "class", "predicted", "probability"]
    assert [row[:3] for row in rows[1:]] == [["pictures.bin:2", "cat", "dog"], ["pictures.bin:3", "dog", "cat"]]
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))], abs=1e-6)


def test_no_mistakes_are_an_empty_list(pictures):
    metrics = compute_metrics(np.eye(2), np.array([0, 1]), ("cat", "dog"))
    assert mistakes.mistakes_csv(metrics, pictures(2)) == "picture,class,predicted,probability\n"


def test_the_gallery_shows_the_surest_mistakes(metrics, pictures):
    dataset = pictures(4)
    dataset.images[:] = 255
    dataset.images[2] = [255, 0, 0]
    dataset.images[3] = [0, 255, 0]
    shown = np.asarray(Image.open(io.BytesIO(mistakes.gallery_png(metrics, dataset, "title"))).convert("RGB"))
    red, green = (np.argwhere((shown == color).all(axis=2)) for color in ([255, 0, 0], [0, 255, 0]))
    assert min(len(red), len(green)) > 5000
    assert red[:, 1].max() < green[:, 1].min()  # the surer one comes first
    assert dataset.served == [2, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gallery_has_an_end(make_metrics, pictures, channels):
    dataset, metrics = pictures(200), make_metrics(gain=0)
    dataset.images = dataset.images[..., :channels]
    assert len(metrics.mistakes.examples) > 100
    assert Image.open(io.BytesIO(mistakes.gallery_png(metrics, dataset, "title"))).width < 2000
    assert dataset.served == metrics.mistakes.examples[:32].tolist()
