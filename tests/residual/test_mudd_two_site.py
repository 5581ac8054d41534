"""Two-site MUDD against the code of the record."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.mudd_two_site import MUDDTwoSite
from tests.oracle import compare_model, groups_by_name
from tests.residual.plain import stream_spec
from tests.support import component, jitter, tiny_gpt


def source_model(gpt: Any, idx: Tensor) -> Tensor:
    """GPT.forward with forward_mudd: mu[0..5] of layer 10 and mu[0, 1, 2, 4] after the loop, on the trunk's sublayers."""
    strategy = gpt.residual

    def forward_mudd(x: Tensor, number: int) -> tuple[Tensor, ...]:
        rows = slice(0, 6) if number == 0 else slice(6, 10)
        z = x @ strategy.w1_2GD[number].T
        gelu = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
        return ((gelu @ strategy.w2_CG[rows].T + strategy.b_C[rows]) * 0.1).split(1, dim=-1)

    x = gpt.embedding(idx)
    B, T, D = x.shape
    cache = {0: x}
    for i, block in enumerate(gpt.h):
        attn_in = block.ln_1(x)
        v_mudd = torch.zeros_like(x)
        if i == 10:
            cache[9] = x
            mu = forward_mudd(x, 0)
            v_mudd = mu[0] * cache[0] + mu[1] * cache[7] + mu[2] * x
            x = (1 + mu[5]) * x + mu[3] * cache[0] + mu[4] * cache[7]
        q, k, v = (attn_in @ w.T for w in block.attn.c_attn.weight.chunk(3))
        q, k, v = (y.view(B, T, 2, D // 2).transpose(1, 2) for y in (q, k, v + v_mudd))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D)
        x = x + block.attn.c_proj(y)
        x = x + block.mlp(block.ln_2(x))
        if i in (3, 7):
            cache[i] = x
    mu = forward_mudd(x, 1)
    return gpt.ln_f(x + mu[0] * cache[0] + mu[1] * cache[7] + mu[2] * cache[9] + mu[3] * cache[3])


def test_it_equals_its_source() -> None:
    """KellerJordan/modded-nanogpt @ f411b3d, train_gpt.py."""
    compare_model(jitter(tiny_gpt("mudd_two_site", n_layer=11)).double(), source_model)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """KellerJordan/modded-nanogpt @ f411b3d, init_mudd and param_table of train_gpt.py: lr 0.008 * 0.25."""
    gpt = tiny_gpt("mudd_two_site", n_embd=64)
    strategy = gpt.residual
    assert strategy.w1_2GD.shape == (2, 64, 64)
    bound = math.sqrt(6 / ((1 + 5) * 64))  # kaiming_uniform_ with a = sqrt(5)
    assert 0.99 * bound < strategy.w1_2GD.abs().max() <= bound
    assert not strategy.w2_CG.any()
    assert (0.1 * strategy.b_C).tolist() == pytest.approx([0.0] * 7 + [-0.5] + [0.0] * 2)
    groups = groups_by_name(gpt)
    assert all(groups[f"residual.{name}"] == (pytest.approx(0.002), 0.0) for name in ("w1_2GD", "w2_CG", "b_C"))


@pytest.mark.parametrize(("n_layer", "early", "late"), [(11, 3, 7), (12, 3, 8), (24, 7, 15), (3, 1, 1), (2, 0, 0)])
def test_layers_are_at_the_same_share_of_the_depth(n_layer: int, early: int, late: int) -> None:
    strategy = component("residual", "mudd_two_site")(stream_spec(n_layer))
    assert (strategy.early, strategy.late) == (early, late)


def test_the_last_layer_is_no_source() -> None:
    keys = {"hidden": 4, "scale": 0.1, "backout_init": 0.5, "early_layer": None, "lr": 0.1}
    with pytest.raises(ValueError, match=r"residual.late_layer must be between 0 and 1, got 2"):
        MUDDTwoSite(stream_spec(3), **keys, late_layer=2)
