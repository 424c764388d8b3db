"""The networks by name."""

import pytest

from thumbnet.config import ModelConfig
from thumbnet.errors import UsageError
from thumbnet.models import insist_takes_side


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("speed", {}, 9),
        ("speed", {"residual": True}, 24),
    ],
)
def test_networks_that_pool_over_all_positions_take_smaller_pictures(
    name: str, options: dict[str, object], side: int
) -> None:
    insist_takes_side(ModelConfig(name=name, options=options), side, crop=32)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("classic", {}, "it takes pictures of one size alone"),
        ("cuda-convnet", {"net": "13pct"}, "it takes pictures of one size alone"),
        ("speed", {}, "8x8 pixels are too few: the speed network halves its input three times and needs 9x9"),
    ],
)
def test_other_networks_are_refused_them(name: str, options: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError) as caught:
        insist_takes_side(ModelConfig(name=name, options=options), 8, crop=32)
    message = str(caught.value)
    assert message.startswith(f"schedule.resize: '{name}' does not train on 8x8 on the way to 32x32: ")
    assert why in message
    assert message.endswith("take larger scales, or none: --set 'schedule.resize=[]'")
