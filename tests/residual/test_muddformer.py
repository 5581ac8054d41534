"""MUDDFormer against the PyTorch code of its authors, and its initial values against their JAX code.

Covers `src/residual/families/mudd_weights.py` and `ViewNorms` of `src/models/block.py` too.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.models.block import ViewNorms
from src.residual.base import QKV
from src.residual.muddformer import MUDDFormer
from tests.oracle import LR, WEIGHT_DECAY, compare_model, groups_by_name
from tests.residual.plain import stream_spec
from tests.support import jitter, tiny_gpt, tokens


def source_model(gpt: Any, idx: Tensor) -> Tensor:
    """MUDDFormer.forward with MultiwayDynamicDenseBlock and TransformerBlock, on the trunk's sublayers."""
    dense, n_layer = gpt.residual.dense, len(gpt.h)
    dense_bs = torch.split(dense.a_P, dense.n_weights)
    x = gpt.embedding(idx)
    hiddens = [x]
    for i, block in enumerate(gpt.h):
        if i == 0:
            res, normed = x, QKV(*[block.ln_1(x)] * 3)
        else:
            res = x[-1]
            normed = QKV(block.ln_1.q(x[0]), block.ln_1.k(x[1]), block.ln_1.v(x[2]))
        h = res + block.attn(normed)
        x = h + block.mlp(block.ln_2(h))
        hiddens.append(x)
        C = 1 if i == n_layer - 1 else 4
        z = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) @ dense.w1[i].T
        dw = 0.5 * z * (1 + torch.erf(z / 2**0.5)) @ dense.w2[i].T
        dw = dw.unflatten(-1, (C, i + 2)).permute(2, 0, 1, 3) + dense_bs[i].view(C, 1, 1, i + 2)
        x = [sum(dw[c, :, :, j, None] * hiddens[j] for j in range(i + 2)) for c in range(C)]
    return gpt.ln_f(x[0])


def test_it_equals_its_source() -> None:
    """Caiyun-AI/MUDDFormer @ fc067b2, pytorch/muddformer/modeling_muddformer.py."""
    compare_model(jitter(tiny_gpt("muddformer")).double(), source_model)


def test_hidden_layers_have_the_widths_of_its_source() -> None:
    """Caiyun-AI/MUDDFormer @ fc067b2, MultiwayDynamicDenseBlock with config.json: round64 and expand_last."""
    widths = [len(w1) for w1 in MUDDFormer(stream_spec(32), round_hidden=64, eps=1e-6).dense.w1]
    assert widths[:2] == [64, 64]  # of 4 * 2 and 4 * 3
    assert widths[14] == 128  # of 4 * 16: a multiple of 64 gets 64 more
    assert widths[31] == 192  # of 4 * 1 * 33


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """Caiyun-AI/MUDDFormer @ fc067b2, jax/MaxText/layers/llama2.py and optimizers.py, which decays every parameter."""
    gpt = tiny_gpt("muddformer", n_embd=256)
    dense = gpt.residual.dense
    for i, (w1, w2, a) in enumerate(zip(dense.w1, dense.w2, torch.split(dense.a_P, dense.n_weights), strict=True)):
        assert w1.std().item() == pytest.approx(256**-0.5, rel=0.02)  # variance_scaling(1, fan_in, normal)
        assert not w2.any()
        ways = 1 if i == 2 else 4
        assert a.view(ways, i + 2).tolist() == [[0.0] * (i + 1) + [1.0]] * ways
    groups = groups_by_name(gpt)
    own = {name for name, _ in gpt.named_parameters() if name.startswith("residual.")}
    assert own
    assert all(groups[name] == (LR, WEIGHT_DECAY) for name in own)


def test_the_views_of_attention_have_three_norms_from_the_second_layer_on() -> None:
    gpt = tiny_gpt("muddformer")
    assert [isinstance(block.ln_1, ViewNorms) for block in gpt.h] == [False, True, True]
    names = [name for name, _ in gpt.named_parameters() if name.startswith("h.1.ln_1.")]
    assert names == ["h.1.ln_1.q.weight", "h.1.ln_1.k.weight", "h.1.ln_1.v.weight"]


def test_without_rounding_it_has_the_published_count() -> None:
    strategy = MUDDFormer(stream_spec(24, 1024), round_hidden=0, eps=1e-6)
    assert sum(p.numel() for p in strategy.parameters()) == pytest.approx(1.41e6, rel=5e-3)


def rounding_error(name: str, dtype: torch.dtype, seed: int) -> tuple[float, float]:
    """Return the error of an evaluation of 66 tokens, and how much a prefix of them alone differs; both over its norm."""
    gpt, idx = jitter(tiny_gpt(name, n_layer=12, block_size=66, seed=seed)), tokens(3, 66, seed=seed)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        together, prefix = gpt.hidden(idx), gpt.hidden(idx[:, :33])
    exact = gpt.double().hidden(idx).detach()
    error, difference = (together - exact).norm() / exact.norm(), (together[:, :33] - prefix).norm() / exact.norm()
    return error.item(), difference.item()


@pytest.mark.parametrize("seed", [0, 1])
def test_large_differences_under_bf16_are_rounding_that_its_weights_amplify(seed: int) -> None:
    """With jittered weights, products of sums over 12 layers amplify every rounding, that of float32 in the same way."""
    plain, _ = rounding_error("vanilla", torch.float32, seed)
    wide, _ = rounding_error("muddformer", torch.float32, seed)
    narrow, difference = rounding_error("muddformer", torch.bfloat16, seed)
    assert wide > 10 * plain
    assert narrow > 0.1
    assert narrow < wide * torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps
    assert difference < narrow


def test_at_init_bf16_rounds_it_no_more_than_vanilla() -> None:
    gpt, plain = (tiny_gpt(name, n_layer=12, block_size=66) for name in ("muddformer", "vanilla"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gpt.hidden(tokens(3, 66)), plain.hidden(tokens(3, 66))
    assert (ours - theirs).norm() < 2e-3 * theirs.norm()
