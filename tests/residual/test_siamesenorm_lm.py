"""SiameseNorm for language models against its source, attention and streams written out."""

import torch

from src.models.gpt import GPT
from tests.oracle import LR, compare_model, groups_by_name
from tests.support import jitter, tiny_gpt


def attention(block: torch.nn.Module, gain_3K: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Return causal attention with an RMSNorm of queries, keys and values per head."""
    B, T, D = h.shape
    heads = block.attn.c_attn(h).view(B, T, 3, 2, D // 2)
    q, k, v = (gain_3K[:, None] * heads / (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt()).unbind(2)
    score = torch.einsum("bthk,bshk->bhts", q, k) / (D // 2) ** 0.5
    weight = score.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    return block.attn.c_proj(torch.einsum("bhts,bshk->bthk", weight, v).reshape(B, T, D))


def test_it_equals_its_source() -> None:
    """Qwen-Applications/SiameseNorm @ 70efa00, OLMo_model_hybrid_pre.py: `OLMoSequentialBlock`, `OLMo.forward`.

    Branches of attn_norm false (the only ones that `reset_parameters` accepts), ffn_norm and ffn_residual_after_norm.
    `ff_input_norm` and `ln_final_f` are the trunk's norms here.
    """
    gpt = jitter(tiny_gpt("siamesenorm_lm")).double()

    def oracle(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
        own = gpt.residual
        x = gpt.embedding(idx)
        y = x.clone()
        for layer_id, block in enumerate(gpt.h):
            c = ((layer_id + 1) * 2) ** 0.5
            res = attention(block, own.gain_A3K[layer_id], x * own.scale_AD[layer_id] + own.pre_norms[2 * layer_id](y))
            x, y = x + res / c, y + res
            og_x = own.post_norms[layer_id](x)
            res = block.mlp(block.ln_2(og_x + own.pre_norms[2 * layer_id + 1](y)))
            x, y = og_x + res / c, y + res
        return gpt.ln_f(own.post_norms[3](x) + own.pre_norms[6](y))

    compare_model(gpt, oracle)


def test_scales_and_norms_start_at_one_without_decay() -> None:
    """Compare with `OLMoSequentialBlock.reset_parameters`; the decay is a stated deviation."""
    gpt = tiny_gpt("siamesenorm_lm")
    assert all(torch.equal(p, torch.ones_like(p)) for p in gpt.residual.parameters())
    assert {groups_by_name(gpt)[f"residual.{name}"] for name, _ in gpt.residual.named_parameters()} == {(LR, 0.0)}


def test_only_mlps_have_a_norm_of_the_trunk() -> None:
    gpt = tiny_gpt("siamesenorm_lm")
    assert all(block.ln_1 is None and block.ln_2 is not None for block in gpt.h)
    assert gpt.ln_f is not None
