"""Parallel lanes equal the sources' recurrence."""

from typing import Any

import pytest
import torch

from src.residual.parallel_lanes import ParallelLanes
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers

KEYS: dict[str, Any] = {
    "start_layer": 1,
    "carry_init": 1.1**0.5,
    "write_init": 1.0,
    "attn_to_mlp_init": 1.5,
    "carry_lr_scale": 5.0,
    "write_lr_scale": 1.0,
}


def test_it_equals_the_sources_recurrence() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(ParallelLanes(spec, **KEYS))
    x = x0 + branches[0](x0)
    x = x + branches[1](x)
    lanes = [x, x]
    for k in range(2, 6):
        y = branches[k](lanes[k % 2])
        r, w = strategy.carry_A[k - 2], strategy.write_A2[k - 2]
        lanes = [r * lanes[j] + w[j] * y for j in range(2)]
    expected = (lanes[0] + lanes[1]) / 2
    assert torch.allclose(flow(strategy, spec, x0, branches), expected, rtol=0, atol=1e-13)


def test_with_carries_and_writes_of_one_it_is_vanilla() -> None:
    spec, branches, x = stream_spec(), sublayers(6), embedding_like()
    strategy = ParallelLanes(spec, **{**KEYS, "carry_init": 1.0, "attn_to_mlp_init": 1.0}).double()
    out = flow(strategy, spec, x, branches)
    for branch in branches:
        x = x + branch(x)
    assert torch.equal(out, x)


def test_both_published_initializations_can_be_configured() -> None:
    modded = ParallelLanes(stream_spec(11), **{**KEYS, "start_layer": 7})
    assert modded.write_A2.tolist() == [[1.0, 1.5], [1.0, 1.0]] * 4
    golf = ParallelLanes(stream_spec(11), **{**KEYS, "start_layer": None, "attn_to_mlp_init": 1.0})
    assert golf.write_A2.tolist() == [[1.0, 1.0]] * 8
    assert torch.equal(golf.carry_A, torch.full((8,), 1.1**0.5))


def test_carries_have_a_larger_learning_rate_than_writes() -> None:
    groups = ParallelLanes(stream_spec(), **KEYS).param_groups()
    assert [(g.params[0].dim(), g.lr_scale, g.decay) for g in groups] == [(1, 5.0, False), (2, 1.0, False)]


def test_a_start_beyond_the_last_layer_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"start_layer must be >= 0 and <= 2, got 3"):
        ParallelLanes(stream_spec(3), **{**KEYS, "start_layer": 3})
