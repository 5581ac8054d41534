"""Delta attention residuals in blocks equal the authors' decoder layers."""

import pytest
import torch
from torch import Tensor

from src.residual.delta_attnres_block import BlockDeltaAttentionResiduals
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, jittered, stream_spec, sublayers
from tests.support import tiny_gpt

KEYS = {"query_std": 0.02, "eps": 1e-6}


@pytest.mark.parametrize(("n_layer", "n_block"), [(2, 2), (4, 2), (5, 2), (4, 4), (7, 4)])
def test_it_equals_its_source(n_layer: int, n_block: int) -> None:
    """wdlctc/delta-attention-residuals-code @ fc11c3e, Attention-Residuals/modeling_qwen3_attnres.py, "delta_block".

    Without a gate (gate_type "bias") and a null source. The source has a query for every site; those of sites with one
    source or none do not count.
    """
    spec = stream_spec(n_layer)
    strategy = jittered(BlockDeltaAttentionResiduals(spec, n_block=n_block, **KEYS))
    layers_per_block = (n_layer + n_block - 1) // n_block
    rows = iter(zip(strategy.query_QD, strategy.key_gain_QD, strict=True))

    def route(blocks: list[Tensor], partial: Tensor) -> Tensor:
        if not blocks:
            return partial
        query, gain = next(rows) if len(blocks) > 1 else (partial.new_zeros(6), partial.new_ones(6))
        v = torch.stack(blocks)
        keys = gain * (v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6))
        weights = torch.einsum("d,nbtd->nbt", query, keys).softmax(0)
        return partial + torch.einsum("nbt,nbtd->btd", weights, v)

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        blocks: list[Tensor] = []
        partial = x0
        for layer in range(n_layer):
            attn_out = branches[2 * layer](route(blocks, partial))
            if layer % layers_per_block == 0:  # is_block_boundary
                blocks = [*blocks, partial - blocks[-1] if blocks else partial]
            partial = partial + attn_out
            partial = partial + branches[2 * layer + 1](route(blocks, partial))
        assert next(rows, None) is None
        return partial

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Linear weights are N(0, initializer_range = 0.02), AdamW decays all parameters, 4 blocks (train_scratch.py)."""
    strategy = BlockDeltaAttentionResiduals(stream_spec(24, 1024), n_block=4, **KEYS)
    torch.manual_seed(0)
    strategy.reset()
    assert abs(strategy.query_QD.std().item() - 0.02) < 2e-4
    assert torch.equal(strategy.key_gain_QD, torch.ones(35, 1024))
    gpt = tiny_gpt("delta_attnres_block")
    assert (gpt.residual.query_std, gpt.residual.eps) == (0.02, 1e-6)
    groups = groups_by_name(gpt)
    assert groups["residual.query_QD"] == groups["residual.key_gain_QD"] == (LR, WEIGHT_DECAY)


@pytest.mark.parametrize(
    ("n_layer", "words"), [(24, "4 groups of 6 layers"), (5, "3 groups of 2 layers, the last of 1")]
)
def test_the_groups_that_four_are_at_a_depth_are_stated(n_layer: int, words: str) -> None:
    assert BlockDeltaAttentionResiduals(stream_spec(n_layer), n_block=4, **KEYS).describe() == words


def test_its_weights_reproduce_the_inputs_of_sites() -> None:
    spec, x0 = stream_spec(5), embedding_like()[:1, :1]  # of a single token, the mean over tokens is that token's
    strategy = jittered(BlockDeltaAttentionResiduals(spec, n_block=4, **KEYS))
    state, inputs, outputs = strategy.begin(x0), [], []
    for site, branch in zip(spec.sites, sublayers(10), strict=True):
        x, state = strategy.read(state, site)
        inputs.append(x)
        outputs.append(branch(x))
        state = strategy.write(state, site, outputs[-1])
    inputs.append(strategy.end(state))
    weight_KJ = strategy.mixing(spec.sites, x0, tuple(outputs))
    found = torch.einsum("kj,jbtd->kbtd", weight_KJ, torch.stack([x0, *outputs]))
    assert torch.allclose(found, torch.stack(inputs), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n_layer", "n_block"), [(3, 1), (1, 4)])
def test_one_group_is_rejected(n_layer: int, n_block: int) -> None:
    with pytest.raises(ValueError, match=f"must be >= 2, got {n_block} and {n_layer}"):
        BlockDeltaAttentionResiduals(stream_spec(n_layer), n_block=n_block, **KEYS)
