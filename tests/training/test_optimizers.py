import pytest
import torch

from thumbnet.config import OptimizerConfig, load_preset
from thumbnet.errors import UsageError
from thumbnet.models.classic import build_classic
from thumbnet.models.speed import build_speed
from thumbnet.training.optimizers import build_optimizer, decay_of, decay_terms, orthogonalize, set_rates
from thumbnet.training.state import new_state

DECAY = {"local3": 0.004, "local4": 0.004}


def test_weight_decay_is_the_gradient_of_its_loss_term() -> None:
    torch.manual_seed(0)
    model = build_classic(num_classes=10, crop=24)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1.0, weight_decay=DECAY))
    term = sum(0.004 / 2 * model.get_submodule(name).weight.square().sum() for name in DECAY)
    weight = model.get_submodule("local3").weight
    (gradient,) = torch.autograd.grad(term, weight)
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(before - weight.detach(), gradient)
    assert sum(decay_terms(model, DECAY).values()).item() == pytest.approx(
        sum(0.004 / 2 * model.get_submodule(name).weight.square().sum().item() for name in DECAY)
    )


def test_the_tutorials_first_loss() -> None:
    """ln 10 for the ten classes and the initial decay: the 4.68 of the tutorial's first line, to sampling noise."""
    torch.manual_seed(0)
    terms = decay_terms(build_classic(num_classes=10, crop=24), DECAY)
    assert sum(terms.values()).item() + 2.3026 == pytest.approx(4.68, abs=0.02)


def test_biases_and_undecayed_layers_are_left_alone() -> None:
    model = build_classic(num_classes=10, crop=24)
    decays = {name: decay_of(name, parameter, DECAY) for name, parameter in model.named_parameters()}
    assert {name for name, decay in decays.items() if decay} == {"local3.weight", "local4.weight"}
    assert decay_of("conv1.weight", model.get_parameter("conv1.weight"), {"default": 0.5}) == 0.5
    assert decay_of("conv1.bias", model.get_parameter("conv1.bias"), {"default": 0.5}) == 0


def test_momentum_is_nesterovs_on_request() -> None:
    """Two steps of a constant gradient g at rate r: plain momentum moves r g (2 + m), Nesterov r g (2 + 2m + m^2)."""
    for nesterov, expected in ((False, 2.9), (True, 2 + 1.8 + 0.81)):
        model = torch.nn.Linear(1, 1, bias=False)
        start = model.weight.item()
        config = OptimizerConfig(learning_rate=0.1, momentum=0.9, nesterov=nesterov)
        optimizer = build_optimizer(model, config)
        for _ in range(2):
            model.weight.grad = torch.ones(1, 1)
            optimizer.step()
        assert start - model.weight.item() == pytest.approx(0.1 * expected, rel=1e-5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_descent_is_that_of_torch_to_the_bit(momentum: float, nesterov: bool) -> None:
    model, plain = build_classic(num_classes=10, crop=24), build_classic(num_classes=10, crop=24)
    plain.load_state_dict(model.state_dict())
    config = OptimizerConfig(learning_rate=0.1, momentum=momentum, nesterov=nesterov, weight_decay={"default": 0.004})
    optimizer = build_optimizer(model, config)
    weights, biases = ([one for one in plain.parameters() if (one.ndim > 1) is many] for many in (True, False))
    groups = [{"params": weights, "weight_decay": 0.004}, {"params": biases, "weight_decay": 0.0}]
    reference = torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov)
    for seed in range(3):
        for network, stepping in ((model, optimizer), (plain, reference)):
            stepping.zero_grad()
            give_gradients(network, seed)
            stepping.step()
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'local3'"):
        build_optimizer(build_classic(num_classes=10, crop=24), OptimizerConfig(weight_decay={"locl3": 0.1}))


def speed_config(**changes: object) -> OptimizerConfig:
    settings = {"name": "muon", "learning_rate": 0.2, "momentum": 0.85, "nesterov": True, "muon_momentum": 0.6}
    return OptimizerConfig(**(settings | {"rates": {"biases": 3.0, "head": 5.0}} | changes))


def small_speed_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_speed(num_classes=10, crop=12, widths=(32, 32, 64))


def give_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, steps=5)
    # The directions stay, what stretches them becomes about 1: the iteration's own band is 0.7 to 1.2.
    inner = left.T @ found @ right.T
    large = values > 0.1 * values[0]
    assert (inner.diagonal()[large] > 0.6).all()
    assert (inner.diagonal() < 1.3).all()
    torch.testing.assert_close(inner - torch.diag(inner.diagonal()), torch.zeros_like(inner), rtol=0, atol=0.05)


@pytest.mark.parametrize(("products", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
def test_muon_moves_convolutions_by_orthogonalized_nesterov_gradients(products: torch.dtype, tolerance: float) -> None:
    model = small_speed_net()
    optimizer = build_optimizer(model, speed_config(), products=products)
    weight = model.get_parameter("conv3.weight")
    buffer = torch.zeros_like(weight)
    for seed in range(2):
        give_gradients(model, seed)
        buffer = 0.6 * buffer + weight.grad
        scaled = weight.detach() * 32**0.5 / weight.detach().norm()
        # Rows of C_out times columns in any order: orthogonalization commutes with a permutation of the columns.
        matrix = (weight.grad + 0.6 * buffer).flatten(1)
        expected = scaled - 0.2 * orthogonalize(matrix.to(products)).float().reshape(weight.shape)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("precision", "products"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_muon_multiplies_in_what_the_network_computes_in(precision: str, products: torch.dtype) -> None:
    recipe = load_preset("quick", {"train.precision": precision})
    assert new_state(recipe, num_classes=10, channels=3).optimizer.products is products  # type: ignore[attr-defined]


def test_muon_moves_everything_else_by_nesterov_descent() -> None:
    model, plain = small_speed_net(), small_speed_net()
    optimizer = build_optimizer(model, speed_config(weight_decay={"head": 0.01}))
    others = [
        {"params": [parameter for parameter in plain.parameters() if parameter.ndim == 1], "lr": 3.0},
        {"params": [plain.get_parameter("head.weight")], "lr": 5.0, "weight_decay": 0.01},
    ]
    descent = torch.optim.SGD(others, momentum=0.85, nesterov=True)
    for seed in range(3):
        for network, stepping in ((model, optimizer), (plain, descent)):
            give_gradients(network, seed)
            stepping.step()
    for name, parameter in plain.named_parameters():
        if parameter.ndim != 4:
            torch.testing.assert_close(model.get_parameter(name), parameter)


def test_rates_follow_the_schedule_and_frozen_layers_stop() -> None:
    model = small_speed_net()
    optimizer = build_optimizer(model, speed_config(freeze_after={"whiten": 0.25}))
    bias = model.get_parameter("whiten.bias")
    for progress, factor, learns in ((0.0, 1.0, True), (0.24, 0.5, True), (0.25, 0.5, False), (0.9, 0.1, False)):
        set_rates(optimizer, factor=factor, progress=progress)
        assert bias.requires_grad is learns
        assert {round(group["lr"], 6) for group in optimizer.param_groups} == {
            round(peak * factor, 6) for peak in (0.2, 3.0, 5.0)
        }
        before = bias.detach().clone()
        give_gradients(model, 0)
        optimizer.step()
        assert torch.equal(bias.detach(), before) is not learns
    set_rates(optimizer, factor=0.0, progress=1.0)
    assert model.get_parameter("head.weight").requires_grad


@pytest.mark.parametrize("key", ["rates", "freeze_after", "weight_decay"])
def test_a_layer_that_does_not_exist_is_a_usage_error(key: str) -> None:
    with pytest.raises(UsageError, match=f"optimizer.{key}.haed: no such layer.*head"):
        build_optimizer(small_speed_net(), speed_config(**{key: {"haed": 0.5}}))


@pytest.mark.parametrize("layer", ["conv3", "default"])
def test_the_convolutions_of_muon_which_keep_their_norm_take_no_decay(layer: str) -> None:
    with pytest.raises(UsageError, match=r"optimizer\.weight_decay of conv\d is 0\.5: in muon, convolutions keep"):
        build_optimizer(small_speed_net(), speed_config(weight_decay={layer: 0.5}))
    build_optimizer(small_speed_net(), OptimizerConfig(weight_decay={layer: 0.5}))


@pytest.mark.parametrize("key", ["rates", "weight_decay"])
def test_all_biases_together_are_known_beside_the_layers(key: str) -> None:
    with pytest.raises(UsageError, match="did you mean 'biases'"):
        build_optimizer(small_speed_net(), speed_config(**{key: {"biasses": 0.5}}))


def test_biases_decay_where_asked() -> None:
    model = small_speed_net()
    with torch.no_grad():
        model.get_parameter("norm3.bias").fill_(2.0)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1.0, weight_decay={"biases": 0.25}))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = model.get_parameter("conv3.weight").detach().clone()
    terms = decay_terms(model, {"biases": 0.25})
    assert terms["norm3"].item() == pytest.approx(0.125 * 4 * 32)
    optimizer.step()
    assert torch.equal(model.get_parameter("norm3.bias").detach(), torch.full((32,), 1.5))
    assert torch.equal(model.get_parameter("conv3.weight").detach(), weight)
