import pytest
import torch
from torch import Tensor, nn

from thumbnet.evaluation.views import ViewAverage


class Corner(nn.Module):
    """Answers with the top left pixel, so that every view is told apart."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW[:, :, 0, 0]


def picture() -> Tensor:
    return torch.arange(25.0).reshape(1, 1, 5, 5)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ("one", 0.0),
        ("mirror", (0 + 4) / 2),
        # Moved by (-1, -1), the reflected border's corner is pixel (1, 1) = 6, in the mirror (1, 3) = 8; moved by
        # (1, 1), pixel (1, 1) itself, and in the mirror the last column, reflected: (1, 3).
        ("shifts", 0.5 * 2 + 0.25 * 7 + 0.25 * 7),
    ],
)
def test_weights_of_the_views(views: str, expected: float) -> None:
    assert ViewAverage(Corner(), views)(picture()).item() == pytest.approx(expected)


def test_a_network_blind_to_moves_answers_the_same() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    images = torch.ones(2, 3, 6, 6) * torch.tensor([0.5, -1.0])[:, None, None, None]
    for views in ("one", "mirror", "shifts"):
        torch.testing.assert_close(ViewAverage(network, views)(images), network(images))


def test_answers_are_float32() -> None:
    assert ViewAverage(Corner().bfloat16(), "mirror")(picture().bfloat16()).dtype == torch.float32
