import pytest
import torch
from torch import nn

from training.configuration import OptimizationConfig
from training.engine.averaging import WeightAverage
from training.engine.optimization import learning_rate_share, optimizers, set_learning_rates


def test_only_matrices_decay():
    module = nn.ModuleDict(
        {"linear": nn.Linear(2, 3), "conv": nn.Conv2d(1, 1, 3), "norm": nn.LayerNorm(3), "codes": nn.Embedding(4, 2)}
    )
    module.token = nn.Parameter(torch.zeros(1, 3))
    module["conv"].bias.requires_grad_(False)
    (optimizer,) = optimizers(module, OptimizationConfig(learning_rate=1e-3, max_steps=1, weight_decay=0.05))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decays.get(id(parameter)) for name, parameter in module.named_parameters()}
    assert {name for name, decay in names.items() if decay == 0.05} == {"linear.weight", "conv.weight"}
    assert {name for name, decay in names.items() if decay is None} == {"conv.bias"}
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.linear = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_muon_moves_the_matrices_of_layers_and_adamw_all_else():
    module = nn.ModuleDict({"layer": Layer(), "head": nn.Linear(3, 2), "codes": nn.Embedding(4, 3)})
    config = OptimizationConfig(learning_rate=1e-3, max_steps=1, optimizer="muon", muon_learning_rate=0.02)
    adamw, muon = optimizers(module, config, ["Layer"])
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(muon, torch.optim.Muon)
    names = {parameter: name for name, parameter in module.named_parameters()}
    moved = [
        {names[parameter] for group in one.param_groups for parameter in group["params"]} for one in (adamw, muon)
    ]
    assert moved[1] == {"layer.linear.weight"}
    assert moved[0] | moved[1] == {name for name in names.values() if "frozen" not in name}
    assert not moved[0] & moved[1]
    rates = [{group["lr"] for group in one.param_groups} for one in (adamw, muon)]
    assert rates == [{1e-3}, {0.02}]
    set_learning_rates([adamw, muon], [5e-4, 0.01])
    assert [{group["lr"] for group in one.param_groups} for one in (adamw, muon)] == [{5e-4}, {0.01}]


def test_the_learning_rate_warms_up_and_anneals_over_the_whole_run():
    assert learning_rate_share(warmed_up=0.25, progress=0) == 0.25
    assert learning_rate_share(warmed_up=4, progress=0.5) == pytest.approx(0.5)
    assert learning_rate_share(warmed_up=9, progress=1) == 0
    assert learning_rate_share(warmed_up=9, progress=1.5) == 0


def test_the_average_runs_over_all_steps():
    """Against the definition by hand: it is started once and never again."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    average = WeightAverage(module, decay=0.9)
    expected = module.weight.detach().clone()
    for step in range(1, 41):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        average.update()
        decay = 0.0 if step == 1 else min(0.9, step / (step + 9))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    trained = module.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(module.weight, expected)
    assert torch.equal(module.weight, trained)


def test_the_average_takes_replaced_rows_over():
    module = nn.Embedding(4, 2)
    average = WeightAverage(module, decay=0.9)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    average.take_over(module.weight, torch.tensor([True, False, True, False]))
    with average.applied():
        assert torch.equal(module.weight[[0, 2]], before[[0, 2]] + 1)
        assert torch.equal(module.weight[[1, 3]], before[[1, 3]])


def test_the_average_survives_a_round_trip():
    module = nn.Linear(3, 2)
    average = WeightAverage(module, decay=0.9)
    for _ in range(3):
        with torch.no_grad():
            module.weight.mul_(2)
        average.update()
    other = WeightAverage(nn.Linear(3, 2), decay=0.5)
    other.load_state_dict(average.state_dict())
    assert other.optimization_step == 3
    assert other.decay == 0.9
    for one, two in zip(average.shadow_params, other.shadow_params, strict=True):
        assert torch.equal(one, two)
