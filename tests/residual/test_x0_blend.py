"""Blending with x0 equals its recurrence."""

import torch

from src.residual.x0_blend import X0Blend
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers

KEYS = {"keep_init": 1.0, "blend_init": 0.0, "keep_lr_scale": 1.0, "blend_lr_scale": 10.0}


def test_the_carried_stream_is_rescaled_before_each_block() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(X0Blend(spec, **KEYS))
    x = x0
    for i in range(3):
        x = strategy.keep_L[i] * x + strategy.blend_L[i] * x0
        x = x + branches[2 * i](x)
        x = x + branches[2 * i + 1](x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_blend_learns_ten_times_as_fast_as_keep() -> None:
    strategy = X0Blend(stream_spec(), **KEYS)
    groups = list(strategy.param_groups())
    assert [(g.params[0] is p, g.lr_scale, g.decay) for g, p in zip(groups, strategy.parameters(), strict=True)] == [
        (True, 1.0, False),
        (True, 10.0, False),
    ]
