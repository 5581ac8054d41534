"""Parallel attention and MLP with one norm, against the equation and the trunk's own norms."""

import torch

from src.residual.parallel import Parallel
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import jitter, tiny_gpt, tokens


def test_both_sublayers_read_the_layers_normed_input() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(Parallel(spec))
    x = x0
    for i in range(3):
        norm = strategy.norms[i]
        h = (x - x.mean(-1, keepdim=True)) * (x.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
        h = h * norm.weight + norm.bias
        x = x + branches[2 * i](h) + branches[2 * i + 1](h)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_the_trunk_builds_only_the_final_norm() -> None:
    gpt = tiny_gpt("parallel", n_layer=5)
    assert all(block.ln_1 is None and block.ln_2 is None for block in gpt.h)
    assert gpt.ln_f is not None
    assert len(gpt.residual.norms) == 5


def test_with_equal_norms_it_equals_parallel_two_norms() -> None:
    one, two = jitter(tiny_gpt("parallel")).double(), tiny_gpt("parallel_two_norms").double()
    weights = {k: v for k, v in one.state_dict().items() if not k.startswith("residual.")}
    for i, norm in enumerate(one.residual.norms):
        weights |= {f"h.{i}.{ln}.{k}": v for ln in ("ln_1", "ln_2") for k, v in norm.state_dict().items()}
    two.load_state_dict(weights, strict=True)
    assert torch.allclose(one(tokens()), two(tokens()), rtol=0, atol=1e-12)
