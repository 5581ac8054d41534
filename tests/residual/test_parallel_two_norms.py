"""Parallel attention and MLP with two norms, against GPT-NeoX and a library's layer of it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.gpt import GPT
from tests.oracle import compare_model
from tests.support import jitter, tiny_gpt, tokens


def neox_hidden(gpt: GPT, idx: Tensor) -> Tensor:
    x = gpt.embedding(idx)
    w = dict(gpt.named_parameters())

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    for i, block in enumerate(gpt.h):
        residual = x
        x1, x2 = norm(f"h.{i}.ln_1", x), norm(f"h.{i}.ln_2", x)
        output = block.mlp(x2) + block.attn(x1)
        x = residual + output
    return norm("ln_f", x)


def test_it_equals_its_source() -> None:
    """EleutherAI/gpt-neox @ ea7aefd, megatron/model/transformer.py, gpt_j_residual without gpt_j_tied."""
    compare_model(jitter(tiny_gpt("parallel_two_norms", bias=True)).double(), neox_hidden)


def test_a_layer_is_transformers_gpt_neox_layer() -> None:
    neox = pytest.importorskip("transformers.models.gpt_neox.modeling_gpt_neox")
    gpt = jitter(tiny_gpt("parallel_two_norms", n_layer=1, bias=True)).double()
    block, D, H = gpt.h[0], gpt.config.n_embd, gpt.config.n_head
    config = neox.GPTNeoXConfig(
        hidden_size=D, num_attention_heads=H, num_hidden_layers=1, intermediate_size=4 * D, vocab_size=64,
        rotary_pct=0.0, use_parallel_residual=True, hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    theirs = neox.GPTNeoXLayer(config, layer_idx=0).double().eval()
    c_attn = block.attn.c_attn
    with torch.no_grad():  # NeoX keeps each head's query, key and value together
        for ours, qkv in (
            (c_attn.weight, theirs.attention.query_key_value.weight),
            (c_attn.bias, theirs.attention.query_key_value.bias),
        ):
            qkv.copy_(ours.unflatten(0, (3, H, D // H)).transpose(0, 1).flatten(0, 2))
    for ours, other in (
        (block.attn.c_proj, theirs.attention.dense),
        (block.mlp.c_fc, theirs.mlp.dense_h_to_4h),
        (block.mlp.c_proj, theirs.mlp.dense_4h_to_h),
        (block.ln_1, theirs.input_layernorm),
        (block.ln_2, theirs.post_attention_layernorm),
    ):
        other.load_state_dict(ours.state_dict())
    x = gpt.embedding(tokens())
    gpt.ln_f = nn.Identity()
    T = x.shape[1]
    mask = torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1)[None, None]
    rotary = (torch.ones(1, T, 0, dtype=x.dtype), torch.zeros(1, T, 0, dtype=x.dtype))
    out = theirs(x, attention_mask=mask, position_embeddings=rotary)
    out = out[0] if isinstance(out, tuple) else out
    assert torch.allclose(gpt.hidden(tokens()), out, rtol=0, atol=1e-10)
