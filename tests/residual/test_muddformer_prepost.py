"""MUDDFormer with norms around its sums against the JAX code of its authors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from src.residual.base import QKV
from tests.oracle import LR, WEIGHT_DECAY, compare_model, groups_by_name
from tests.support import jitter, tiny_gpt


def rmsnorm(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * scale


def source_model(gpt: Any, idx: Tensor) -> Tensor:
    """Decoder.__call__ with LlamaDecoderLayer (dense_conn, mudd_prenorm, mudd_postnorm), on the trunk's sublayers."""
    strategy, dense = gpt.residual, gpt.residual.dense
    biases = torch.split(dense.a_P, dense.n_weights)
    y = gpt.embedding(idx)
    hids = [rmsnorm(y, strategy.pre_gain_JD[0])]
    ways = [y] * 4
    for i, block in enumerate(gpt.h):
        norms = block.ln_1
        inputs = ways[-1]
        mid = inputs + block.attn(QKV(norms.q(ways[0]), norms.k(ways[1]), norms.v(ways[2])))
        y = mid + block.mlp(block.ln_2(mid))
        z = rmsnorm(y, dense.gain_LD[i]) @ dense.w1[i].T
        gelu = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))  # flax: approximate
        C = 1 if i == len(gpt.h) - 1 else 4
        w = (gelu @ dense.w2[i].T + biases[i]).unflatten(-1, (C, i + 2))
        hids.append(rmsnorm(y, strategy.pre_gain_JD[i + 1]))
        sums = [sum(w[:, :, c, j, None] * hids[j] for j in range(i + 2)) for c in range(C)]
        ways = [y + s for s in sums[:-1]] + [y + rmsnorm(sums[-1], strategy.post_gain_LD[i])]
    return gpt.ln_f(ways[0])


def test_it_equals_its_source() -> None:
    """Caiyun-AI/MUDDFormer @ fc067b2, jax/MaxText/layers/models.py and llama2.py, recipe MUDDLlama2Medium of exp.py."""
    compare_model(jitter(tiny_gpt("muddformer_prepost")).double(), source_model)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """Caiyun-AI/MUDDFormer @ fc067b2, jax/MaxText/layers/llama2.py and optimizers.py, which decays every parameter."""
    gpt = tiny_gpt("muddformer_prepost", n_embd=256)
    strategy = gpt.residual
    assert torch.equal(strategy.post_gain_LD, torch.full((3, 256), 0.001))
    assert torch.equal(strategy.pre_gain_JD, torch.ones(4, 256))
    assert torch.equal(strategy.dense.gain_LD, torch.ones(3, 256))
    assert not strategy.dense.a_P.any()
    for w1, w2 in zip(strategy.dense.w1, strategy.dense.w2, strict=True):
        assert w1.shape[0] == 64
        assert w1.std().item() == pytest.approx(256**-0.5, rel=0.02)
        assert not w2.any()
    groups = groups_by_name(gpt)
    own = {name for name, _ in gpt.named_parameters() if name.startswith("residual.")}
    assert own
    assert all(groups[name] == (LR, WEIGHT_DECAY) for name in own)
