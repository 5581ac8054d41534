"""Parallel attention and MLP with two norms, against the published model code."""

import pytest
import torch
from torch import nn

from src.residual.parallel_two_norms import ParallelTwoNorms
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers
from tests.support import jitter, tiny_gpt, tokens


def test_both_sublayers_read_the_layers_input() -> None:
    spec, branches, x = stream_spec(), sublayers(6), embedding_like()
    out = flow(ParallelTwoNorms(spec), spec, x, branches)
    for i in range(3):
        x = x + branches[2 * i](x) + branches[2 * i + 1](x)
    assert torch.allclose(out, x, rtol=0, atol=1e-13)


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
