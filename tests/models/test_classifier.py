import numpy as np
import torch
from torch import nn

from thumbnet.models.classic import build_classic
from thumbnet.models.classifier import Classifier


def test_predict_gives_the_softmax_of_the_logits() -> None:
    torch.manual_seed(0)
    model = build_classic(num_classes=10, crop=24)
    x = torch.randn(5, 3, 24, 24) * 30
    probabilities = model.predict(x)
    logits = model(x).detach().double().numpy()
    expected = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(probabilities.numpy(), expected / expected.sum(1, keepdims=True), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    assert not probabilities.requires_grad


def test_predict_answers_as_in_evaluation_and_leaves_every_mode_as_it_was() -> None:
    model = Classifier(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    model[2].eval()
    x = torch.randn(6, 1, 2, 2)
    assert torch.equal(model.predict(x), model.predict(x))
    assert [module.training for module in model] == [True, True, False, True]
