"""What a strategy may do at an attention site: three views, and a tap on keys and values."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.norm.layernorm import LayerNorm
from src.residual.base import QKV, Site
from src.residual.vanilla import Vanilla
from tests.support import SIZES, jitter, tiny_gpt, tokens


class Views(Vanilla):
    def read(self, state: Tensor, site: Site) -> tuple[Any, Tensor]:
        return (QKV(state, state, state) if site.kind == "attn" else state), state


@pytest.mark.parametrize("bias", [True, False])
def test_three_equal_views_are_the_fused_projection(bias: bool) -> None:
    norm = partial(LayerNorm, eps=1e-5)
    sizes = GPTConfig(**{**SIZES, "bias": bias})
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
