import math

import pytest
import torch
from torch import nn

from overopt.modules.optimizers import OptimizerSettings


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def test_the_default_is_the_papers():
    optimizer = OptimizerSettings().optimizer(network().parameters())
    assert isinstance(optimizer, torch.optim.RMSprop)
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in ("lr", "alpha", "eps", "momentum", "centered", "weight_decay")} == {
        "lr": 0.5e-6,
        "alpha": 0.99,
        "eps": 1e-8,
        "momentum": 0,
        "centered": False,
        "weight_decay": 0,
    }
    assert OptimizerSettings().rate_factor(74, 10_000) == 75 / 150
    assert OptimizerSettings().rate_factor(5_000, 10_000) == 1


def test_only_matrices_decay_and_only_what_trains_is_optimised():
    model = network()
    model[0].weight.requires_grad_(False)
    groups = OptimizerSettings("adamw", weight_decay=0.1).optimizer(model.parameters()).param_groups
    shapes = {group["weight_decay"]: [tuple(p.shape) for p in group["params"]] for group in groups}
    assert shapes == {0.1: [(1, 4)], 0.0: [(4,), (4,), (4,), (1,)]}


@pytest.mark.parametrize(("warmup", "steps"), [(10, 10), (0.25, 10), (0, 0), (1, 1)])
def test_warm_up_is_a_straight_line_to_the_full_rate(warmup, steps):
    settings = OptimizerSettings(warmup_steps=warmup)
    rates = [settings.rate_factor(step, 40) for step in range(40)]
    assert rates == pytest.approx([min(1.0, (step + 1) / max(1, steps)) for step in range(40)])
    assert rates[0] > 0  # the first step must not be lost


def test_cosine_falls_from_the_full_rate_to_none_at_the_end_of_the_run():
    settings = OptimizerSettings(warmup_steps=10, decay="cosine")
    assert settings.rate_factor(10, 110) == 1
    assert settings.rate_factor(60, 110) == pytest.approx(0.5)
    assert settings.rate_factor(35, 110) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert settings.rate_factor(110, 110) == pytest.approx(0)
    assert settings.rate_factor(130, 110) == pytest.approx(0)  # a run that is longer than was planned


def test_the_schedule_drives_the_optimiser():
    settings = OptimizerSettings("adamw", learning_rate=0.1, warmup_steps=4)
    model = network()
    optimizer = settings.optimizer(model.parameters())
    schedule = settings.schedule(optimizer, 100)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("bad", [{"learning_rate": 0.0}, {"warmup_steps": -1}, {"weight_decay": -0.1}], ids=str)
def test_settings_out_of_range_are_refused(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        OptimizerSettings(**bad)
