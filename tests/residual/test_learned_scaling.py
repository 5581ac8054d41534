"""Learned scaling equals the benchmark's block equation."""

import torch

from src.residual.learned_scaling import LearnedScaling
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_it_equals_the_benchmarks_block_equation() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LearnedScaling(spec, carry_init=1.0, blend_init=0.0))
    x = x0
    for i in range(3):
        h = x + branches[2 * i](x)
        block = h + branches[2 * i + 1](h)
        x = strategy.carry_L[i] * x + (block - x) + strategy.blend_L[i] * x0
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_it_has_two_parameters_a_block() -> None:
    assert sum(p.numel() for p in LearnedScaling(stream_spec(5), carry_init=1.0, blend_init=0.0).parameters()) == 10
