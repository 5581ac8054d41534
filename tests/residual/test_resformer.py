"""ResFormer against attention written out."""

import pytest
import torch

from tests.support import jitter, tiny_gpt, tokens


def test_values_are_blended_with_the_first_layers() -> None:
    gpt = jitter(tiny_gpt("resformer")).double()
    idx = tokens()
    x, v0 = gpt.embedding(idx), None
    B, T, D = x.shape
    for i, block in enumerate(gpt.h):
        q, k, v = (p.view(B, T, 2, D // 2) for p in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
        if v0 is None:
            v0 = v
        else:
            first, own = gpt.residual.lambda_A2[i - 1]
            v = first * v0 + own * v
        score = torch.einsum("bthk,bshk->bhts", q, k) / (D // 2) ** 0.5
        weight = score.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        x = x + block.attn.c_proj(torch.einsum("bhts,bshk->bthk", weight, v).reshape(B, T, D))
        x = x + block.mlp(block.ln_2(x))
    assert torch.allclose(gpt.hidden(idx), gpt.ln_f(x), rtol=0, atol=1e-10)


def test_with_weight_on_own_values_only_it_equals_vanilla() -> None:
    ours = tiny_gpt("resformer", strategy={"first_init": 0.0, "own_init": 1.0}).double()
    assert torch.allclose(ours(tokens()), tiny_gpt().double()(tokens()), rtol=0, atol=1e-12)


def test_one_layer_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs model.n_layer >= 2, got 1"):
        tiny_gpt("resformer", n_layer=1)
