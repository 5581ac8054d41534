"""Parameter groups, and the step that keeps weights when something is not finite."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from src.models.optim.adamw import OptimizerConfig, apply_gradients, build_optimizer, set_lr
from tests.support import tiny_gpt

GOOD: dict[str, Any] = {
    "lr": 1e-3,
    "min_lr": 1e-4,
    "warmup_steps": 10,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "grad_clip": 1.0,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0),
        ("lr", -1e-3),
        ("min_lr", 1e-2),
        ("min_lr", -1.0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("grad_clip", 0.0),
    ],
)
def test_a_bad_value_is_named_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{key} must"):
        OptimizerConfig(**{**GOOD, key: value})


def one_weight(scale: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(3))
    groups = [{"params": [weight], "lr_scale": scale, "weight_decay": 0.0}]
    return weight, torch.optim.AdamW(groups, lr=1.0, fused=True)


def test_the_schedule_multiplies_a_groups_own_scale() -> None:
    weight, optimizer = one_weight(10.0)
    set_lr(optimizer, 0.01)
    weight.grad = torch.ones(3)
    apply_gradients(optimizer, [weight], 100.0, torch.tensor(1.0))
    assert torch.allclose(weight, torch.full((3,), 1 - 0.1), atol=1e-5)


def test_the_norm_before_clipping_is_reported_and_the_clip_is_applied() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    norm = apply_gradients(optimizer, [weight], 1.0, torch.tensor(0.0))
    assert norm.item() == 5.0
    assert torch.allclose(weight, torch.tensor([-0.6, -0.8]), atol=1e-4)
    assert weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(bad: float, where: str) -> None:
    gpt = tiny_gpt()
    before = [p.detach().clone() for p in gpt.parameters()]
    optimizer = build_optimizer(gpt, OptimizerConfig(**GOOD))
    for step in range(2):  # the second is sound, and comes too late
        for param in gpt.parameters():
            param.grad = torch.ones_like(param)
        if where == "gradient" and step == 0:
            next(gpt.parameters()).grad.view(-1)[1] = bad
        loss = torch.tensor(bad if where == "loss" and step == 0 else 1.0)
        apply_gradients(optimizer, list(gpt.parameters()), 1.0, loss)
        assert all(torch.equal(a, b) for a, b in zip(before, gpt.parameters(), strict=True))
