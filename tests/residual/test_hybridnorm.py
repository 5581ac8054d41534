"""HybridNorm against its source, attention and stream written out.

Covers `src/residual/families/head_norms.py` too.
"""

import torch

from src.models.gpt import GPT
from tests.oracle import LR, compare_model, groups_by_name
from tests.support import jitter, tiny_gpt


def test_it_equals_its_source() -> None:
    """BryceZhuo/HybridNorm @ f0dd605, dense_model/olmo/model.py: `OLMoSequentialBlock`, `OLMoBlock.attention`.

    Flags of dense_model/configs/exps/1.2B-dense-HybriedNorm.yaml: attn_norm false, ffn_norm and
    ffn_residual_after_norm true, norms of query, key and value with gains and eps 1e-5.
    """
    gpt = jitter(tiny_gpt("hybridnorm")).double()

    def oracle(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
        x = gpt.embedding(idx)
        B, T, D = x.shape
        for i, block in enumerate(gpt.h):
            heads = block.attn.c_attn(x).view(B, T, 3, 2, D // 2)
            rms = heads.square().mean(-1, keepdim=True).add(1e-5).sqrt()
            q, k, v = (gpt.residual.gain_A3K[i][:, None] * (heads / rms)).unbind(2)
            score = torch.einsum("bthk,bshk->bhts", q, k) / (D // 2) ** 0.5
            weight = score.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
            att = torch.einsum("bhts,bshk->bthk", weight, v).reshape(B, T, D)
            x = gpt.residual.norms[i](x + block.attn.c_proj(att))
            x = x + block.mlp(x)
        return gpt.ln_f(x)

    compare_model(gpt, oracle)


def test_norms_start_at_one_and_replace_those_of_the_trunk() -> None:
    """Compare with `LayerNormBase.reset_parameters`; the decay of the source's recipe is a stated deviation."""
    gpt = tiny_gpt("hybridnorm")
    assert torch.equal(gpt.residual.gain_A3K, torch.ones(3, 3, 8))
    assert all(torch.equal(norm.weight, torch.ones(16)) for norm in gpt.residual.norms)
    norms = {name: rate for name, rate in groups_by_name(gpt).items() if "norm" in name or "ln_" in name}
    assert norms == dict.fromkeys((*(f"residual.norms.{i}.weight" for i in range(3)), "ln_f.weight"), (LR, 0.0))
    assert groups_by_name(gpt)["residual.gain_A3K"] == (LR, 0.0)
