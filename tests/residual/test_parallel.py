"""Parallel attention and MLP with one norm, against GPT-NeoX's tied form and the trunk's own norms.

Covers `src/residual/families/shared_norm.py` too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.gpt import GPT
from tests.oracle import LR, compare_model, groups_by_name
from tests.support import jitter, tiny_gpt, tokens


def neox_hidden(gpt: GPT, idx: Tensor) -> Tensor:
    x = gpt.embedding(idx)
    w = dict(gpt.named_parameters())
    for i, block in enumerate(gpt.h):
        residual = x
        x1 = x2 = F.layer_norm(x, x.shape[-1:], w[f"residual.norms.{i}.weight"], w[f"residual.norms.{i}.bias"], 1e-5)
        output = block.mlp(x2) + block.attn(x1)
        x = residual + output
    return F.layer_norm(x, x.shape[-1:], w["ln_f.weight"], w["ln_f.bias"], 1e-5)


def test_it_equals_its_source() -> None:
    """EleutherAI/gpt-neox @ ea7aefd, megatron/model/transformer.py, gpt_j_residual with gpt_j_tied."""
    compare_model(jitter(tiny_gpt("parallel", bias=True)).double(), neox_hidden)


def test_its_norms_have_no_weight_decay() -> None:
    """EleutherAI/gpt-neox @ ea7aefd, megatron/model/utils.py, get_params_for_weight_decay_optimization."""
    groups = groups_by_name(tiny_gpt("parallel", bias=True))
    assert {groups[name] for name in groups if name.startswith("residual.")} == {(LR, 0.0)}


def test_the_trunk_builds_only_the_final_norm() -> None:
    gpt = tiny_gpt("parallel", n_layer=5)
    assert all(block.ln_1 is None and block.ln_2 is None for block in gpt.h)
    assert gpt.ln_f is not None
    assert len(gpt.residual.norms) == 5


def test_with_equal_norms_it_equals_parallel_two_norms() -> None:
    one, two = jitter(tiny_gpt("parallel")).double(), tiny_gpt("parallel_two_norms").double()
    weights = {k: v for k, v in one.state_dict().items() if not k.startswith("residual.")}
    for i, norm in enumerate(one.residual.norms):
        weights |= {f"h.{i}.{ln}.{k}": v for ln in ("ln_1", "ln_2") for k, v in norm.state_dict().items()}
    two.load_state_dict(weights, strict=True)
    assert torch.allclose(one(tokens()), two(tokens()), rtol=0, atol=1e-12)
