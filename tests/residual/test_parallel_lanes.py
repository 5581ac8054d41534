"""Parallel lanes against parameter-golf."""

import pytest
import torch
from torch import Tensor

from src.residual.parallel_lanes import ParallelLanes
from tests.oracle import compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import component, tiny_gpt

MODDED = {"attn_to_mlp_init": 1.5, "lr": 0.008, "carry_lr_scale": 5.0, "weight_decay": 0.0}


def test_it_equals_its_source() -> None:
    """openai/parameter-golf @ 4908dc4, records/track_10min_16mb/2026-03-31_ParallelResiduals_MiniDepthRecurrence.

    train_gpt.py, GPT._parallel_block and GPT._final_parallel_hidden, with 11 layers and PARALLEL_START_LAYER=7; without
    its x0 mixing (at its initial [1, 0]), branch gains (1) and U-Net skips.
    """
    spec = stream_spec(11)
    strategy: ParallelLanes = jittered(component("residual", "parallel_lanes")(spec))
    resids = strategy.carry_A.unflatten(0, (4, 2))
    posts = strategy.write_A2.unflatten(0, (4, 2))

    def record(x: Tensor, branches: Sublayers) -> Tensor:
        for layer in range(7):
            x = x + branches[2 * layer](x)
            x = x + branches[2 * layer + 1](x)
        lane0 = lane1 = x
        for layer in range(7, 11):
            attn_out, resid, post = branches[2 * layer](lane0), resids[layer - 7, 0], posts[layer - 7, 0]
            lane0, lane1 = resid * lane0 + post[0] * attn_out, resid * lane1 + post[1] * attn_out
            mlp_out, resid, post = branches[2 * layer + 1](lane1), resids[layer - 7, 1], posts[layer - 7, 1]
            lane0, lane1 = resid * lane0 + post[0] * mlp_out, resid * lane1 + post[1] * mlp_out
        return (lane0 + lane1) * 0.5

    compare_flow(strategy, spec, record)


def test_initial_values_and_groups_are_the_sources() -> None:
    """openai/parameter-golf @ 4908dc4, the same file: carries sqrt(1.1), writes 1; SCALAR_LR 0.025, ADAM_WD 0.04."""
    gpt = tiny_gpt("parallel_lanes", n_layer=11)
    assert gpt.residual.write_A2.tolist() == [[1.0, 1.0]] * 8
    assert torch.equal(gpt.residual.carry_A, torch.full((8,), 1.1**0.5))
    groups = groups_by_name(gpt)
    assert groups["residual.carry_A"] == groups["residual.write_A2"] == (pytest.approx(0.025), 0.04)


def test_the_values_of_modded_nanogpt_can_be_configured() -> None:
    """KellerJordan/modded-nanogpt @ 699e93c, train_gpt.py: w_post, resid_lambda and their entries of param_table."""
    gpt = tiny_gpt("parallel_lanes", n_layer=11, strategy=MODDED)
    assert gpt.residual.write_A2.tolist() == [[1.0, 1.5], [1.0, 1.0]] * 4
    groups = groups_by_name(gpt)
    assert groups["residual.carry_A"] == (pytest.approx(0.04), 0.0)
    assert groups["residual.write_A2"] == (pytest.approx(0.008), 0.0)


def test_with_carries_and_writes_of_one_it_is_vanilla() -> None:
    spec, branches, x = stream_spec(), sublayers(6), embedding_like()
    strategy = component("residual", "parallel_lanes", carry_init=1.0)(spec).double()
    out = flow(strategy, spec, x, branches)
    for branch in branches:
        x = x + branch(x)
    assert torch.equal(out, x)


def test_a_start_beyond_the_last_layer_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"start_layer must be >= 0 and <= 2, got 3"):
        component("residual", "parallel_lanes", start_layer=3)(stream_spec(3))
