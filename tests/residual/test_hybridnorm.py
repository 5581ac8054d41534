"""HybridNorm against attention and stream written out."""

import torch

from tests.support import jitter, tiny_gpt, tokens


def test_it_equals_the_papers_layer() -> None:
    gpt = jitter(tiny_gpt("hybridnorm")).double()
    strategy, idx = gpt.residual, tokens()
    x = gpt.embedding(idx)
    B, T, D = x.shape
    for i, block in enumerate(gpt.h):
        assert block.ln_1 is None
        assert block.ln_2 is None
        heads = block.attn.c_attn(x).view(B, T, 3, 2, D // 2)
        rms = heads.square().mean(-1, keepdim=True).add(1e-5).sqrt()
        q, k, v = (heads / rms * strategy.gain_A3K[i][:, None]).unbind(2)
        score = torch.einsum("bthk,bshk->bhts", q, k) / (D // 2) ** 0.5
        weight = score.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        y = torch.einsum("bhts,bshk->bthk", weight, v).reshape(B, T, D)
        u = strategy.norms[i](x + block.attn.c_proj(y))
        x = u + block.mlp(u)
    assert torch.allclose(gpt.hidden(idx), gpt.ln_f(x), rtol=0, atol=1e-10)
