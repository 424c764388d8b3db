import pytest
from torch import nn

from thumbnet.models.modes import evaluation_mode


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)), nn.Linear(4, 3)).train()
    model[1][1].eval()
    before = modes(model)
    with evaluation_mode(model):
        assert not any(modes(model))
    assert modes(model) == before
    with pytest.raises(RuntimeError), evaluation_mode(model):
        raise RuntimeError
    assert modes(model) == before
