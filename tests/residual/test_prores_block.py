"""ProRes per layer against the benchmark's equation.

Covers `src/residual/families/shared_norm.py` too.
"""

import torch

from src.residual.prores_block import ProResBlock
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers


def test_alpha_scales_a_layers_output_in_training_only() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProResBlock(spec, schedule="linear", warmup_fraction=None, warmup_steps=400).double()
    whole = flow(strategy, spec, x0, branches)
    strategy.on_step(150, 1000)
    x = x0
    for i, alpha in enumerate(strategy.alpha_L):
        h = x + branches[2 * i](x)
        x = x + alpha * (h + branches[2 * i + 1](h) - x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)
    assert torch.equal(flow(strategy.eval(), spec, x0, branches), whole)


def test_at_step_zero_it_equals_the_identity() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProResBlock(spec, schedule="linear", warmup_fraction=0.2, warmup_steps=None).double()
    strategy.on_step(0, 1000)
    assert torch.equal(flow(strategy, spec, x0, branches), x0)
