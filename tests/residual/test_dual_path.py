"""Dual path against its equation, and its third visit."""

import torch

from src.models.flops import count_flops_per_token
from tests.support import jitter, tiny_gpt, tokens


def test_half_of_the_mlp_is_parallel_to_attention_and_half_after_it() -> None:
    gpt = jitter(tiny_gpt("dual_path")).double()
    x, strategy = gpt.embedding(tokens()), gpt.residual
    for i, block in enumerate(gpt.h):
        h = strategy.norms[i](x)
        x = x + block.attn(h) + 0.5 * block.mlp(h)
        x = x + 0.5 * block.mlp(strategy.after_norms[i](x))
    assert torch.allclose(gpt.hidden(tokens()), gpt.ln_f(x), rtol=0, atol=1e-12)


def test_a_layer_has_three_visits_and_no_more_parameters() -> None:
    gpt, plain = tiny_gpt("dual_path"), tiny_gpt()
    assert [(s.index, s.layer, s.kind, s.visit) for s in gpt.sites[3:6]] == [
        (3, 1, "attn", 0),
        (4, 1, "mlp", 0),
        (5, 1, "mlp", 1),
    ]
    assert [(s.opens_block, s.closes_block) for s in gpt.sites[:3]] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert gpt.n_params(positions=True) == plain.n_params(positions=True)


def test_its_flops_count_the_second_visit() -> None:
    gpt, plain = tiny_gpt("dual_path"), tiny_gpt()
    again = sum(p.numel() for block in gpt.h for p in block.mlp.parameters())
    assert count_flops_per_token(gpt) - count_flops_per_token(plain) == 6 * again
