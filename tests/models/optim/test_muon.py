"""optimizer=muon against torch.optim.Muon on single matrices, and against AdamW alone on everything else."""

import pytest
import torch
from torch import nn

from src.models.optim.base import build_optimizer, set_lr
from src.models.optim.groups import hidden_matrices
from src.models.repeated_visits import start_repeated_visits
from tests.models.optim.methods import muon
from tests.support import adamw, options, tiny_gpt, tokens

CONFIG, ADAMW = muon(), adamw(1e-2)


def torchs(weights: list[torch.Tensor], lr: float = 1e-2) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """torch's own Muon on copies of matrices."""
    params = [nn.Parameter(weight.detach().clone()) for weight in weights]
    return params, torch.optim.Muon(params, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("residual", options("residual"))
def test_only_the_matrices_of_the_sublayers_are_muons(residual: str) -> None:
    gpt = tiny_gpt(residual, embedding="untied", bias=True)
    groups = build_optimizer(gpt, CONFIG).param_groups
    assert {p for group in groups if "n_stacked" in group for p in group["params"]} == set(hidden_matrices(gpt))


def test_the_schedule_reaches_both_parts_and_is_multiplied_by_the_scale() -> None:
    optimizer = build_optimizer(tiny_gpt(), muon(momentum=0.9, ns_steps=3, lr_scale=2.0))
    set_lr(optimizer, 0.5)
    rates = {"n_stacked" in group: group["lr"] for group in optimizer.param_groups}
    assert rates == {True: 1.0, False: 0.5}
    first = optimizer.param_groups[0]
    assert (first["momentum"], first["ns_steps"], first["nesterov"]) == (0.9, 3, True)
    assert {group["weight_decay"] for group in optimizer.param_groups if "n_stacked" in group} == {0.1}


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


def test_every_other_parameter_is_updated_as_by_adamw_alone() -> None:
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


def test_each_copy_of_an_mlp_is_a_matrix_and_starts_with_the_moment_of_the_first() -> None:
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


def test_a_matrix_keeps_one_moment_and_everything_else_two() -> None:
    gpt = tiny_gpt(bias=True)
    optimizer = build_optimizer(gpt, CONFIG)
    gpt.loss(tokens(), tokens(seed=9)).backward()
    optimizer.step()
    matrices = hidden_matrices(gpt)
    for param, state in optimizer.state.items():
        kept = {key for key in state if key != "step"}
        assert kept == ({"momentum_buffer"} if param in matrices else {"exp_avg", "exp_avg_sq"})
