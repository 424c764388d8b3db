import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thumbnet.config import DistortConfig, EvaluationConfig
from thumbnet.engine import resolve_precision
from thumbnet.evaluation.evaluate import evaluate_views, evaluate_weights, predict_logits
from thumbnet.evaluation.views import CornerViews, ViewAverage, over_views


class Corner(nn.Module):
    """Answers with the top left pixel, so that every view is told apart."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW[:, :, 0, 0]


def picture() -> Tensor:
    return torch.arange(25.0).reshape(1, 1, 5, 5)


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (False, (0 + 4) / 2),
        # Moved by (-1, -1), the reflected border's corner is pixel (1, 1) = 6, in the mirror (1, 3) = 8; moved by
        # (1, 1), pixel (1, 1) itself, and in the mirror the last column, reflected: (1, 3).
        (True, 0.5 * 2 + 0.25 * 7 + 0.25 * 7),
    ],
)
def test_weights_of_the_views(moved: bool, expected: float) -> None:
    assert ViewAverage(Corner(), moved=moved)(picture()).item() == pytest.approx(expected)


def test_a_network_blind_to_moves_answers_the_same() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    images = torch.ones(2, 3, 6, 6) * torch.tensor([0.5, -1.0])[:, None, None, None]
    for moved in (False, True):
        torch.testing.assert_close(ViewAverage(network, moved=moved)(images), network(images))


def test_answers_are_float32() -> None:
    assert ViewAverage(Corner().bfloat16(), moved=False)(picture().bfloat16()).dtype == torch.float32


class Bright(nn.Module):
    """Finds class 1 likelier the brighter the middle of its 3x3 input is, so that every crop is told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.01))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        assert images_NCHW.shape[-2:] == (3, 3)
        middle = images_NCHW[:, 0, 1, 1] * self.scale
        return torch.stack([torch.zeros_like(middle), middle], dim=1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_corners_are_four_corners_and_the_centre_with_equal_probability() -> None:
    # Of a 5x5 picture with values 0..24 the middles of the 3x3 corners are 6, 8, 16, 18, that of the centre 12; a
    # mirrored crop has the same middle.
    answer = CornerViews(Bright(), crop=3, pad=0)(picture()).softmax(1)[0, 1].item()
    assert answer == pytest.approx(sum(sigmoid(0.01 * middle) for middle in (6, 8, 16, 18, 12)) / 5)


def test_corners_reach_into_the_border_that_training_has() -> None:
    # A 3x3 picture in a border of 1 has its corner crops' middles on the picture's own corners.
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    answer = CornerViews(Bright(), crop=3, pad=1)(image).softmax(1)[0, 1].item()
    assert answer == pytest.approx(sum(sigmoid(0.01 * middle) for middle in (0, 2, 6, 8, 4)) / 5)


def test_corners_reach_into_a_border_wider_than_the_picture() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    bordered = np.pad(image.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    whole = CornerViews(Bright(), crop=3, pad=0)(torch.from_numpy(bordered))
    torch.testing.assert_close(CornerViews(Bright(), crop=3, pad=4)(image), whole)


def test_corners_are_cut_out_of_whole_pictures(pictures) -> None:
    dataset = pictures(2, side=5)
    dataset.class_names, dataset.labels = ("dark", "bright"), np.array([1, 0])
    dataset.images[:] = 0
    dataset.images[0, 1, 1] = 255  # in the middle of the top left crop alone
    distort = DistortConfig(crop=3, standardize="mean", flip="none")
    network = Bright()
    network.scale.data.fill_(1.0)
    asked, whole = over_views(network, distort, EvaluationConfig(views="corners"), dataset.image_shape)
    metrics = evaluate_weights(asked, dataset, whole, precision=resolve_precision("fp32"))
    # Probability of class 1: one crop sure, four sure of the opposite: 1/5 for the first, 0 for the second picture.
    assert metrics.loss == pytest.approx(-math.log(1 / 5) / 2, rel=1e-3)
    assert metrics.accuracy == 0.5


@pytest.mark.parametrize(("views", "moved"), [("mirror", False), ("shifts", True)])
def test_which_views_move_the_picture(views: str, moved: bool) -> None:
    distort = DistortConfig(crop=5)
    asked, same = over_views(Corner(), distort, EvaluationConfig(views=views), (5, 5, 1))
    assert same is distort
    assert torch.equal(asked(picture()), ViewAverage(Corner(), moved=moved)(picture()))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_several_views_of_the_pictures_it_is_least_sure_of(pictures, share: float) -> None:
    dataset, distort, precision = pictures(40, side=8), DistortConfig(crop=8), resolve_precision("fp32")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 10))
    single, labels = predict_logits(network, dataset, distort, precision=precision)
    several, _ = predict_logits(ViewAverage(network, moved=True), dataset, distort, precision=precision)
    sure = np.exp(single).max(1) / np.exp(single).sum(1)
    least_sure = sorted(range(40), key=lambda picture: sure[picture])[: round(share * 40)]
    answers = [(several if picture in least_sure else single)[picture].argmax() for picture in range(40)]

    config = EvaluationConfig(views="shifts", views_share=share)
    metrics, accuracy = evaluate_views(network, dataset, distort, config, precision=precision)
    assert accuracy == np.mean(answers == labels)
    assert metrics.accuracy == np.mean(single.argmax(1) == labels)
    # Something is at stake: the views change answers, and some of these pictures it is sure of.
    assert (several.argmax(1) != single.argmax(1)).sum() > 5
    one = EvaluationConfig(views="one", views_share=share)
    assert evaluate_views(network, dataset, distort, one, precision=precision)[1] is None
