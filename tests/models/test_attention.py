"""What a strategy may do at an attention site: three views, and a tap on keys and values."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.flops import count_flops_per_token
from src.models.gpt import GPT
from src.models.optim.groups import parameter_groups
from src.norm.layernorm import LayerNorm
from src.residual.base import QKV, Site
from src.residual.vanilla import Vanilla
from tests.support import SIZES, jitter, tiny_gpt, tokens


class Views(Vanilla):
    def read(self, state: Tensor, site: Site) -> tuple[Any, Tensor]:
        return (QKV(state, state, state) if site.kind == "attn" else state), state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_kv_head", [2, 1])
def test_three_equal_views_are_the_fused_projection(bias: bool, n_kv_head: int) -> None:
    norm = partial(LayerNorm, eps=1e-5)
    sizes = GPTConfig(**{**SIZES, "bias": bias, "n_kv_head": n_kv_head})
    models = [
        jitter(GPT(sizes, residual=r, norm=norm, embedding=TiedEmbedding, seed=0)).double() for r in (Vanilla, Views)
    ]
    a, b = (gpt(tokens()) for gpt in models)
    assert torch.allclose(a, b, atol=1e-12)


class Tapped(Vanilla):
    taps_qkv = True
    seen: list[tuple[int, torch.Size, torch.Size]]

    def tap_qkv(
        self, state: Tensor, site: Site, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.seen.append((site.index, q.shape, k.shape))
        return q, k, torch.zeros_like(v), state


def test_a_tap_sees_queries_keys_and_values_of_each_attention_site_and_may_replace_them() -> None:
    norm = partial(LayerNorm, eps=1e-5)
    gpt = GPT(GPTConfig(**SIZES), residual=Tapped, norm=norm, embedding=TiedEmbedding, seed=0)
    gpt.residual.seen = []
    x = gpt.hidden(tokens())
    assert gpt.residual.seen == [(k, *[torch.Size((3, 2, 12, 8))] * 2) for k in (0, 2, 4)]
    plain = tiny_gpt()
    for block in plain.h:
        nn.init.zeros_(block.attn.c_proj.weight)
    assert torch.allclose(x, plain.hidden(tokens()), atol=1e-6)


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_grouped_queries_equal_their_source(n_kv_head: int) -> None:
    """meta-llama/llama3 @ a0940f9, llama/model.py, `Attention`: keys and values [B, T, G, K] by `repeat_kv`."""
    gpt = jitter(tiny_gpt(n_head=4, n_kv_head=n_kv_head)).double()
    attention: Any = gpt.h[0].get_submodule("attn")
    B, T, H, K = 2, 5, 4, 4
    x_BTD = torch.randn(B, T, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if n_kv_head == H:
        wq, wk, wv = attention.c_attn.weight.chunk(3)
    else:
        wq, (wk, wv) = attention.c_attn.weight, attention.c_kv.weight.chunk(2)
    q, k, v = (x_BTD @ wq.T).view(B, T, H, K), (x_BTD @ wk.T).view(B, T, -1, K), (x_BTD @ wv.T).view(B, T, -1, K)
    y_BTHK = torch.zeros(B, T, H, K, dtype=torch.float64)
    for head in range(H):
        group = head // (H // n_kv_head)
        score_BTT = q[:, :, head] @ k[:, :, group].transpose(-1, -2) / K**0.5
        score_BTT = score_BTT.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        y_BTHK[:, :, head] = score_BTT.softmax(-1) @ v[:, :, group]
    assert torch.allclose(attention(x_BTD), y_BTHK.flatten(-2) @ attention.c_proj.weight.T, atol=1e-12)
    assert sum(p.numel() for p in attention.parameters()) == 2 * 16**2 + 2 * 16 * n_kv_head * K


def test_matrices_of_grouped_queries_are_queries_keys_and_values() -> None:
    gpt = tiny_gpt(n_head=4, n_kv_head=2)
    groups = parameter_groups(gpt, 1e-3, 0.1)
    found = {groups.names[p]: count for p, count in groups.matrices.items() if groups.names[p].startswith("h.0.attn")}
    assert found == {"h.0.attn.c_attn.weight": 1, "h.0.attn.c_kv.weight": 2, "h.0.attn.c_proj.weight": 1}


def test_parameters_and_flops_count_groups_and_gates() -> None:
    """6 per parameter in a product, 12 D T per attention; 2 D^2 + 2 D G K, 3 D F with F = 64, and a tied head."""
    gpt = tiny_gpt(norm="rmsnorm", mlp="swiglu", n_head=4, n_kv_head=2, positions="rope")
    layer = 2 * 16**2 + 2 * 16 * 2 * 4 + 3 * 16 * 64
    total = 3 * layer + 7 * 16 + 64 * 16
    assert gpt.n_params(positions=False) == gpt.n_params(positions=True) == total
    assert count_flops_per_token(gpt) == 6 * total + 12 * 3 * 16 * 12


def test_output_projections_start_at_zero_on_request() -> None:
    for residual in ("vanilla", "deepnorm", "lns", "hyperconn"):
        gpt = tiny_gpt(residual, zero_init_outputs=True, mlp="swiglu", n_kv_head=1)
        for name, param in gpt.named_parameters():
            assert bool(param.abs().max() == 0) == name.endswith("c_proj.weight") or not name.startswith("h."), name


def test_windows_equal_their_source() -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/flash_attention.py, `_sdpa_attention`: distance <= window, in layers S."""
    gpt = jitter(tiny_gpt(positions="rope", window_pattern="SL", window_size=4)).double()
    wanted = jitter(tiny_gpt(positions="rope")).double()
    row, col = torch.arange(12)[:, None], torch.arange(12)

    def attend_by_source(q: Tensor, k: Tensor, v: Tensor, _: object) -> Tensor:
        seen = (col <= row) & ((row - col) <= 4)
        return (q @ k.mT / 8**0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ v

    first: Any = wanted.h[0].get_submodule("attn")
    first.attend.forward = attend_by_source
    params = [list(model.parameters()) for model in (gpt, wanted)]
    outs = [model.hidden(tokens()) for model in (gpt, wanted)]
    assert torch.allclose(*outs, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(out.square().sum(), ps) for out, ps in zip(outs, params, strict=True)]
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_flops_count_the_tokens_within_windows() -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, `estimate_flops`: 12 D min(window, T) per attention."""
    full, short = (count_flops_per_token(tiny_gpt(**keys)) for keys in ({}, {"window_pattern": "SL", "window_size": 4}))
    assert full - short == 12 * 16 * (12 - 4)
