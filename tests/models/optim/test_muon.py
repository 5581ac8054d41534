"""Muon: whose it is, what it computes, where it holds still, and how it goes on."""

import io
import math

import pytest
import torch
from torch import nn

from src.models.gpt import GPT
from src.models.optim.adamw import OptimizerConfig, apply_gradients, build_optimizer, moment_count, set_lr
from src.models.optim.muon import MuonBesideAdamW, MuonKeys, hidden_matrices
from src.models.repeated_visits import start_repeated_visits
from tests.support import options, tiny_gpt, tokens

KEYS = MuonKeys(momentum=0.95, ns_steps=5, lr_scale=1.0)
CONFIG = OptimizerConfig(1e-2, 1e-3, 0, 0.1, (0.9, 0.95), 1e-8, 1.0, KEYS)
ADAMW = OptimizerConfig(1e-2, 1e-3, 0, 0.1, (0.9, 0.95), 1e-8, 1.0)


def stepped(gpt: GPT, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    """Some steps on random tokens."""
    for step in range(steps):
        loss = gpt.loss(tokens(seed=seed + step), tokens(seed=seed + step + 9))
        loss.backward()
        apply_gradients(optimizer, list(gpt.parameters()), 1.0, loss)


def torchs(weights: list[torch.Tensor], lr: float = 1e-2) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """torch's own Muon on matrices of their own."""
    params = [nn.Parameter(weight.detach().clone()) for weight in weights]
    return params, torch.optim.Muon(params, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


# ---- whose the parameters are


@pytest.mark.parametrize("residual", options("residual"))
def test_each_parameter_is_in_one_group_and_only_the_sublayers_matrices_are_muons(residual: str) -> None:
    gpt = tiny_gpt(residual, embedding="untied", bias=True)
    optimizer = build_optimizer(gpt, CONFIG)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(gpt.parameters())
    muons = {p for group in optimizer.param_groups if "n_stacked" in group for p in group["params"]}
    ends = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    named = {name for name, p in gpt.named_parameters() if p in muons}
    assert named == {n for n, _ in gpt.named_parameters() if n.startswith("h.") and n.endswith(ends)}
    assert len(named) == 12


def test_without_muon_nothing_is_muons() -> None:
    optimizer = build_optimizer(tiny_gpt(), ADAMW)
    assert type(optimizer) is torch.optim.AdamW


def test_the_schedule_reaches_both_and_multiplies_the_scale() -> None:
    keys = MuonKeys(momentum=0.9, ns_steps=3, lr_scale=2.0)
    optimizer = build_optimizer(tiny_gpt(), OptimizerConfig(1e-2, 1e-3, 0, 0.1, (0.9, 0.95), 1e-8, 1.0, keys))
    set_lr(optimizer, 0.5)
    rates = {"n_stacked" in group: group["lr"] for group in optimizer.param_groups}
    assert rates == {True: 1.0, False: 0.5}
    muon = optimizer.param_groups[0]
    assert (muon["momentum"], muon["ns_steps"], muon["nesterov"]) == (0.9, 3, True)
    assert {group["weight_decay"] for group in optimizer.param_groups if "n_stacked" in group} == {0.1}


# ---- what it computes


def test_a_matrix_is_updated_as_by_torchs_muon_alone() -> None:
    gpt = tiny_gpt()
    weights = [gpt.h[0].attn.c_proj.weight, gpt.h[1].mlp.c_fc.weight, gpt.h[2].mlp.c_proj.weight]
    (alone, theirs), optimizer = torchs(weights), build_optimizer(gpt, CONFIG)
    for step in range(3):
        loss = gpt.loss(tokens(seed=step), tokens(seed=step + 9))
        loss.backward()
        for param, weight in zip(alone, weights, strict=True):
            param.grad = weight.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        theirs.step()
        for param, weight in zip(alone, weights, strict=True):
            assert torch.equal(param, weight)


def test_queries_keys_and_values_are_three_matrices() -> None:
    gpt = tiny_gpt()
    weight = gpt.h[1].attn.c_attn.weight
    (alone, theirs), optimizer = torchs(list(weight.chunk(3))), build_optimizer(gpt, CONFIG)
    for step in range(2):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        for param, grad in zip(alone, weight.grad.chunk(3), strict=True):
            param.grad = grad.clone()
        optimizer.step()
        theirs.step()
        assert torch.equal(torch.cat(list(alone)), weight)


def test_what_is_not_muons_is_updated_as_by_adamw_alone() -> None:
    gpt, other = tiny_gpt("mhc", bias=True), tiny_gpt("mhc", bias=True)
    ours, theirs = build_optimizer(gpt, CONFIG), build_optimizer(other, ADAMW)
    before = [p.detach().clone() for p in gpt.parameters()]
    gpt.loss(tokens(), tokens(seed=9)).backward()
    for p, q in zip(gpt.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    ours.step()
    theirs.step()
    hidden = hidden_matrices(gpt)
    for p, q, was in zip(gpt.parameters(), other.parameters(), before, strict=True):
        assert torch.equal(p, q) is (p not in hidden)
        assert not torch.equal(p, was) or not p.grad.any()


def test_each_copy_of_an_mlp_is_a_matrix_and_begins_with_the_firsts_moment() -> None:
    gpt = tiny_gpt(recurrence="mini", visits={"layers": [1]})
    weight = gpt.h[1].mlp.c_fc.weight
    assert weight.dim() == 3
    (alone, theirs), optimizer = torchs(list(weight)), build_optimizer(gpt, CONFIG)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    for param, grad in zip(alone, weight.grad, strict=True):
        param.grad = grad.clone()
    optimizer.step()
    theirs.step()
    assert torch.equal(torch.stack(list(alone)), weight)
    start_repeated_visits(optimizer, gpt.copied_params())
    moment = optimizer.state[weight]["momentum_buffer"]
    for packed in (weight, moment):
        assert packed[0].any()
        assert torch.equal(packed[0], packed[1])


def test_it_keeps_one_moment_of_a_matrix_and_two_of_all_else() -> None:
    gpt = tiny_gpt(bias=True)
    for config in (CONFIG, ADAMW):
        optimizer = build_optimizer(gpt, config)
        stepped(gpt, optimizer, 1)
        kept = [v for state in optimizer.state.values() for key, v in state.items() if key != "step"]
        assert sum(map(torch.Tensor.numel, kept)) == moment_count(gpt, config)


def test_it_learns() -> None:
    gpt = tiny_gpt()
    optimizer = build_optimizer(gpt, CONFIG)
    idx = tokens(batch=4, length=13)
    losses = []
    for _ in range(30):
        loss = gpt.loss(idx[:, :-1], idx[:, 1:])
        loss.backward()
        apply_gradients(optimizer, list(gpt.parameters()), 1.0, loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


# ---- where it holds still


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(bad: float, where: str) -> None:
    gpt = tiny_gpt(recurrence="mini", bias=True)
    optimizer = build_optimizer(gpt, CONFIG)
    stepped(gpt, optimizer, 2)
    before = [p.detach().clone() for p in gpt.parameters()]
    for step in range(2):  # the second is sound, and comes too late
        for param in gpt.parameters():
            param.grad = torch.ones_like(param)
        if where == "gradient" and step == 0:
            gpt.h[0].attn.c_proj.weight.grad.view(-1)[1] = bad
        loss = torch.tensor(bad if where == "loss" and step == 0 else 1.0)
        apply_gradients(optimizer, list(gpt.parameters()), 1.0, loss)
        assert all(torch.equal(a, b) for a, b in zip(before, gpt.parameters(), strict=True))


# ---- how it goes on


def test_a_stored_state_goes_on_bitwise() -> None:
    gpt = tiny_gpt("hyperconn", bias=True)
    optimizer = build_optimizer(gpt, CONFIG)
    stepped(gpt, optimizer, 2)
    file = io.BytesIO()
    torch.save((gpt.state_dict(), optimizer.state_dict()), file)
    stepped(gpt, optimizer, 2, seed=5)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = tiny_gpt("hyperconn", bias=True, seed=7)
    other.load_state_dict(weights)
    again = build_optimizer(other, CONFIG)
    again.load_state_dict(state)
    assert isinstance(again, MuonBesideAdamW)
    stepped(other, again, 2, seed=5)
    for (name, a), b in zip(gpt.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
