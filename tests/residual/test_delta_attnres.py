"""Delta attention residuals equal the authors' decoder layers.

Covers `src/residual/families/delta_attention.py` too.
"""

import torch
from torch import Tensor

from src.residual.delta_attnres import DeltaAttentionResiduals
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """wdlctc/delta-attention-residuals-code @ fc11c3e, Attention-Residuals/modeling_qwen3_attnres.py, mode "delta".

    The first attention has no source and reads the embedding; the embedding becomes a source after it. Without a gate
    (gate_type "bias") and a null source. `Qwen3RMSNorm` is the norm of a key, with its gain; no final routing.
    """
    spec = stream_spec()
    strategy = jittered(DeltaAttentionResiduals(spec, query_std=0.02, eps=1e-6))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        blocks: list[Tensor] = []
        partial = x0
        for site, sublayer in enumerate(branches):
            h = partial
            if blocks:
                v = torch.stack(blocks)
                variance = v.pow(2).mean(-1, keepdim=True)
                keys = strategy.key_gain_QD[site - 1] * (v * torch.rsqrt(variance + 1e-6))
                weights = torch.einsum("d,nbtd->nbt", strategy.query_QD[site - 1], keys).softmax(0)
                h = partial + torch.einsum("nbt,nbtd->btd", weights, v)
            out = sublayer(h)
            if not blocks:
                blocks.append(partial)
            partial = partial + out
            blocks.append(out)
        return partial

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Linear weights are N(0, initializer_range = 0.02), and AdamW decays all parameters (train_scratch.py)."""
    strategy = DeltaAttentionResiduals(stream_spec(24, 1024), query_std=0.02, eps=1e-6)
    torch.manual_seed(0)
    strategy.reset()
    assert abs(strategy.query_QD.std().item() - 0.02) < 1e-4
    assert torch.equal(strategy.key_gain_QD, torch.ones(47, 1024))
    gpt = tiny_gpt("delta_attnres")
    assert (gpt.residual.query_std, gpt.residual.eps) == (0.02, 1e-6)
    groups = groups_by_name(gpt)
    assert groups["residual.query_QD"] == groups["residual.key_gain_QD"] == (LR, WEIGHT_DECAY)


def test_the_last_output_is_not_a_source() -> None:
    spec, x0 = stream_spec(), embedding_like()
    strategy = DeltaAttentionResiduals(spec, query_std=0.02, eps=1e-5).double()
    state = strategy.begin(x0)
    for site in spec.sites:
        state = strategy.write(state, site, x0)
    assert len(state.sources.v_BTD) == 6
