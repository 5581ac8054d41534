"""LIMe against attention over the stacked heads of all layers."""

import torch

from src.residual.base import StreamSpec, build_plain_sites
from src.residual.lime import LIMe
from tests.support import jitter, tiny_gpt, tokens


def test_keys_and_values_are_sums_over_all_layers_heads() -> None:
    gpt = jitter(tiny_gpt("lime")).double()
    idx, strategy = tokens(), gpt.residual
    routers = torch.split(strategy.router_PHH, strategy.n_sources)
    x = gpt.embedding(idx)
    B, T, D = x.shape
    keys, values = [], []
    for i, block in enumerate(gpt.h):
        q, k, v = (p.view(B, T, 2, D // 2) for p in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
        keys.append(k)
        values.append(v)
        if i > 0:
            router = torch.cat(list(routers[i - 1]), dim=1)  # [H, (i + 1) H]
            k, v = (torch.einsum("gh,bthk->btgk", router, torch.cat(s, 2)) for s in (keys, values))
        score = torch.einsum("bthk,bshk->bhts", q, k) / (D // 2) ** 0.5
        weight = score.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        x = x + block.attn.c_proj(torch.einsum("bhts,bshk->bthk", weight, v).reshape(B, T, D))
        x = x + block.mlp(block.ln_2(x))
    assert torch.allclose(gpt.hidden(idx), gpt.ln_f(x), rtol=0, atol=1e-10)


def test_the_count_is_the_papers_and_a_layer_starts_with_its_own_heads() -> None:
    strategy = LIMe(StreamSpec(24, 16, 1024, build_plain_sites(24), torch.nn.LayerNorm), lr_scale=33.0)
    strategy.reset()
    assert strategy.router_PHH.numel() == 76_544
    for router_JHH in torch.split(strategy.router_PHH, strategy.n_sources):
        assert torch.equal(router_JHH[-1], torch.eye(16))
        assert router_JHH[:-1].abs().max() <= (3 / (16 * len(router_JHH))) ** 0.5
    assert [g.lr_scale for g in strategy.param_groups()] == [33.0]
