"""LIMe against the code of its authors: attention over the routed heads of all layers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.residual.base import StreamSpec, build_plain_sites
from src.residual.lime import LIMe
from tests.oracle import compare_model, groups_by_name
from tests.support import jitter, tiny_gpt


def source_model(gpt: Any, idx: Tensor) -> Tensor:
    """LIMeModel with LIMeAttention, StaticRouter and FirstLayerRouter, on the trunk's weights, without rotation."""
    routers = torch.split(gpt.residual.router_PHH, gpt.residual.n_sources)
    x = gpt.embedding(idx)
    B, T, D = x.shape
    H, K = 2, D // 2
    kv_buffer = x.new_zeros(0, B * T * 2 * K)
    for i, block in enumerate(gpt.h):
        w_q, w_k, w_v = block.attn.c_attn.weight.view(3, H, K, D)
        normed = block.ln_1(x).view(B * T, D)
        q = (normed @ w_q.reshape(D, D).T).view(B, T, H, K).transpose(1, 2)
        kv = normed @ torch.cat((w_k, w_v), dim=1).reshape(2 * D, D).T  # rows: a head's keys, then its values
        kv_buffer = torch.cat((kv_buffer, kv.view(B * T, H, 2 * K).transpose(0, 1).reshape(H, -1)))
        static_weights = torch.cat(list(routers[i - 1]), dim=1) if i > 0 else torch.eye(H, dtype=x.dtype)
        k, v = (static_weights @ kv_buffer).view(H, B, T, 2 * K).transpose(0, 1).chunk(2, dim=-1)
        score = (q @ k.transpose(-2, -1) / K**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        x = x + block.attn.c_proj((score.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))
        x = x + block.mlp(block.ln_2(x))
    return gpt.ln_f(x)


def test_it_equals_its_source() -> None:
    """corl-team/lime @ 4242812, src/lm/lime.py."""
    compare_model(jitter(tiny_gpt("lime")).double(), source_model)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """corl-team/lime @ 4242812, StaticRouter and configure_optimizers (train_utils.py) with router_lr of config.py."""
    strategy = LIMe(StreamSpec(24, 16, 1024, build_plain_sites(24), torch.nn.LayerNorm), lr=0.01)
    strategy.reset()
    assert strategy.router_PHH.numel() == 76_544  # the paper's count
    for router_JHH in torch.split(strategy.router_PHH, strategy.n_sources):
        assert torch.equal(router_JHH[-1], torch.eye(16))
        bound = (3 / (16 * len(router_JHH))) ** 0.5
        assert 0.97 * bound < router_JHH[:-1].abs().max() <= bound
    assert groups_by_name(tiny_gpt("lime"))["residual.router_PHH"] == (pytest.approx(0.01), 0.0)
