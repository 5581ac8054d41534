"""The contract of optimizers, over every shipped option and some classes of torch."""

import inspect
import io
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from src.models.optim.base import (
    OptimizerConfig,
    apply_gradients,
    build_optimizer,
    count_state,
    set_lr,
)
from src.models.optim.groups import GroupRule
from src.settings.optimizer import SHARED
from tests.models.optim.methods import CONFIGS, SHIPPED, train
from tests.support import ROOT, adamw, class_of, composed_settings, tiny_gpt, tokens

every_optimizer = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def composed(group: str, name: str) -> DictConfig:
    """One shipped option with what it inherits."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        section: DictConfig = compose("config", overrides=["name=x", f"{group}={name}"])[group]
    return section


@pytest.mark.parametrize("name", SHIPPED)
def test_the_yaml_holds_the_shared_keys_and_exactly_the_constructors_own(name: str) -> None:
    option = composed("optimizer", name)
    parameters = inspect.signature(class_of(option)).parameters.values()
    own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {str(key) for key in option if not str(key).startswith("_")} == {*SHARED, *own}


def test_every_shipped_option_is_among_the_optimizers_tested_here() -> None:
    for name in SHIPPED:
        shipped, tested = composed_settings(f"optimizer={name}").optimizer.method, CONFIGS[name].method
        assert (shipped.func, shipped.keywords) == (tested.func, tested.keywords)  # type: ignore[attr-defined]  # partials


@every_optimizer
def test_each_parameter_is_in_exactly_one_group(config: OptimizerConfig) -> None:
    gpt = tiny_gpt("mhc", bias=True)
    grouped = [p for group in build_optimizer(gpt, config).param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(gpt.parameters())


@every_optimizer
def test_a_model_learns(config: OptimizerConfig) -> None:
    gpt = tiny_gpt()
    optimizer = build_optimizer(gpt, config)
    set_lr(optimizer, 0.5 if optimizer.__class__.__name__ == "SGD" else 1e-2)
    idx = tokens(batch=4, length=13)
    losses = []
    for _ in range(30):
        loss = gpt.loss(idx[:, :-1], idx[:, 1:])
        loss.backward()
        apply_gradients(optimizer, list(gpt.parameters()), 1.0, loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@every_optimizer
def test_no_weight_changes_from_the_first_non_finite_step_on(config: OptimizerConfig, where: str, bad: float) -> None:
    gpt = tiny_gpt(recurrence="mini", bias=True)
    optimizer = build_optimizer(gpt, config)
    train(gpt, optimizer, 2)
    before = [p.detach().clone() for p in gpt.parameters()]
    for step in range(2):  # the second step is finite, and changes nothing either
        for param in gpt.parameters():
            param.grad = torch.ones_like(param)
        if where == "gradient" and step == 0:
            gpt.h[0].attn.c_proj.weight.grad.view(-1)[1] = bad
        loss = torch.tensor(bad if where == "loss" and step == 0 else 1.0)
        apply_gradients(optimizer, list(gpt.parameters()), 1.0, loss)
        assert all(torch.equal(a, b) for a, b in zip(before, gpt.parameters(), strict=True))


@every_optimizer
def test_a_stored_state_resumes_bit_for_bit(config: OptimizerConfig) -> None:
    gpt = tiny_gpt("hyperconn", bias=True)
    optimizer = build_optimizer(gpt, config)
    train(gpt, optimizer, 2)
    file = io.BytesIO()
    torch.save((gpt.state_dict(), optimizer.state_dict()), file)
    train(gpt, optimizer, 2, seed=5)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = tiny_gpt("hyperconn", bias=True, seed=7)
    other.load_state_dict(weights)
    resumed = build_optimizer(other, config)
    resumed.load_state_dict(state)
    train(other, resumed, 2, seed=5)
    for (name, a), b in zip(gpt.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_loading_keeps_the_configured_options_of_the_groups() -> None:
    gpt = tiny_gpt()
    state = build_optimizer(gpt, adamw()).state_dict()
    changed = OptimizerConfig(1e-3, 1e-4, 0, 0.3, 1.0, adamw().method, (GroupRule("*", {"betas": (0.5, 0.6)}),))
    optimizer = build_optimizer(gpt, changed)
    optimizer.load_state_dict(state)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.6)] * 2


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "Adafactor"])
def test_the_count_of_the_state_is_what_a_step_keeps(name: str) -> None:
    gpt = tiny_gpt(bias=True)
    optimizer = build_optimizer(gpt, CONFIGS[name])
    train(gpt, optimizer, 1)
    kept = [v for state in optimizer.state.values() for key, v in state.items() if key != "step"]
    assert count_state(gpt, CONFIGS[name]) == sum(map(torch.Tensor.numel, kept))


def test_an_optimizer_whose_step_needs_values_counts_as_adamw() -> None:
    gpt = tiny_gpt(bias=True)
    assert count_state(gpt, CONFIGS["Adafactor"]) == 2 * sum(p.numel() for p in gpt.parameters())


def test_counting_leaves_model_and_random_state_alone() -> None:
    gpt = tiny_gpt()
    before, state = [p.detach().clone() for p in gpt.parameters()], torch.get_rng_state()
    count_state(gpt, CONFIGS["muon"])
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, gpt.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


# ---- one step


def test_the_schedules_rate_is_multiplied_by_a_groups_scale() -> None:
    weight = nn.Parameter(torch.ones(3))
    groups = [{"params": [weight], "lr_scale": 10.0, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
    set_lr(optimizer, 0.01)
    weight.grad = torch.ones(3)
    apply_gradients(optimizer, [weight], 100.0, torch.tensor(1.0))
    assert torch.allclose(weight, torch.full((3,), 1 - 0.1), atol=1e-5)


def test_the_norm_before_clipping_is_returned_and_the_clip_is_applied() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    norm = apply_gradients(optimizer, [weight], 1.0, torch.tensor(0.0))
    assert norm.item() == 5.0
    assert torch.allclose(weight, torch.tensor([-0.6, -0.8]), atol=1e-4)
    assert weight.grad is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0),
        ("lr", -1e-3),
        ("min_lr", 1e-2),
        ("min_lr", -1.0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("grad_clip", 0.0),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_key(key: str, value: float) -> None:
    valid = {"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 10, "weight_decay": 0.1, "grad_clip": 1.0}
    with pytest.raises(ValueError, match=rf"optimizer\.{key} must"):
        OptimizerConfig(**{**valid, key: value}, method=adamw().method)  # type: ignore[arg-type]  # numbers
