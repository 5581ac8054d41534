"""MUDDFormer equals its layer written out, and has the published count.

Covers `src/residual/families/mudd_weights.py` too.
"""

from typing import Any

import pytest
import torch

from src.residual.base import QKV
from src.residual.muddformer import MUDDFormer
from tests.residual.plain import stream_spec
from tests.support import jitter, tiny_gpt, tokens


def write_out(gpt: Any, idx: torch.Tensor, prepost: bool = False) -> torch.Tensor:
    strategy = gpt.residual
    statics = torch.split(strategy.dense.a_P, strategy.dense.n_weights)
    x = gpt.embedding(idx)
    q = k = v = x

    def rms(x: torch.Tensor, gain: torch.Tensor | float = 1.0) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    sources = [rms(x, strategy.pre_gain_JD[0]) if prepost else x]
    for i, block in enumerate(gpt.h):
        x = x + block.attn(QKV(block.ln_1(q), block.ln_1(k), block.ln_1(v)))
        x = x + block.mlp(block.ln_2(x))
        sources.append(rms(x, strategy.pre_gain_JD[i + 1]) if prepost else x)
        hidden = torch.nn.functional.gelu(rms(x) @ strategy.dense.w1[i].T)
        n_ways = 1 if i == len(gpt.h) - 1 else 4
        weight = (hidden @ strategy.dense.w2[i].T + statics[i]).view(*idx.shape, n_ways, len(sources))
        ways = [sum(weight[:, :, c, j, None] * s for j, s in enumerate(sources)) for c in range(n_ways)]
        if prepost:
            ways = [x + way for way in ways[:-1]] + [x + rms(ways[-1], strategy.post_gain_LD[i])]
        if n_ways == 4:
            q, k, v, _ = ways
        x = ways[-1]
    return gpt.ln_f(x)


def test_it_equals_the_papers_layer() -> None:
    gpt = jitter(tiny_gpt("muddformer")).double()
    assert torch.allclose(gpt.hidden(tokens()), write_out(gpt, tokens()), rtol=0, atol=1e-10)


def test_it_has_the_published_count() -> None:
    strategy = MUDDFormer(stream_spec(24, 1024), eps=1e-6)
    assert sum(p.numel() for p in strategy.parameters()) == pytest.approx(1.41e6, rel=5e-3)
    assert [g.decay for g in strategy.param_groups()] == [True, False]
