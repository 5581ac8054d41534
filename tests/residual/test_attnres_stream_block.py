"""Attention over streams equals the benchmark's loop written out.

Covers `src/residual/families/stream_attention.py` too.
"""

import pytest
import torch
from torch import Tensor

from src.residual.attnres_stream_block import StreamBlockAttention
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def mix(query: Tensor, streams: list[Tensor], eps: float) -> Tensor:
    stacked = torch.stack(streams)
    keys = torch.nn.functional.rms_norm(stacked, (stacked.size(-1),), eps=eps)
    weights = torch.einsum("d,nbtd->nbt", query, keys).softmax(0)
    return torch.einsum("nbt,nbtd->btd", weights, stacked)


@pytest.mark.parametrize(("n_layer", "group_layers"), [(4, 2), (6, 2), (3, 3), (3, 1)])
def test_it_equals_its_source(n_layer: int, group_layers: int) -> None:
    """Imbernoulli/innovation_proior @ 9e202f7, trajectories/llm-pretrain-residual/04-full_attnres-answer.md.

    A block of layers runs with ordinary residuals; before each but the first, and after the last, the stream becomes
    a mixture of the embedding and the ends of all blocks. rms_norm has torch's default eps, that of the dtype.
    """
    spec, eps = stream_spec(n_layer), torch.finfo(torch.float64).eps
    strategy = jittered(StreamBlockAttention(spec, group_layers=group_layers, eps=eps))
    *queries, query_out = strategy.query_QD

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        block_outputs = [x]
        for block in range(n_layer // group_layers):
            if block > 0:
                x = mix(queries[block - 1], block_outputs, eps)
            for site in range(2 * block * group_layers, 2 * (block + 1) * group_layers):
                x = x + branches[site](x)
            block_outputs.append(x)
        return mix(query_out, block_outputs, eps)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """Blocks of 4 layers, zero queries without weight decay, eps of float32; the rate is a deviation (`source`)."""
    gpt = tiny_gpt("attnres_stream_block", n_layer=8)
    assert gpt.residual.describe() == "2 groups of 4 layers"
    assert gpt.residual.eps == pytest.approx(torch.finfo(torch.float32).eps, rel=1e-6)
    assert not gpt.residual.query_QD.any()
    assert groups_by_name(gpt)["residual.query_QD"] == (LR, 0.0)


def test_it_has_the_benchmarks_six_queries() -> None:
    strategy = StreamBlockAttention(stream_spec(24, 1024), group_layers=4, eps=1e-5)
    assert sum(p.numel() for p in strategy.parameters()) == 6_144
    assert strategy.mixes_before == {8, 16, 24, 32, 40}


def test_layers_that_fill_no_group_are_the_last_group() -> None:
    strategy = StreamBlockAttention(stream_spec(5), group_layers=2, eps=1e-5)
    assert strategy.mixes_before == {4, 8}
    assert strategy.describe() == "3 groups of 2 layers, the last of 1"


def test_group_layers_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"group_layers must be >= 1, got 0"):
        StreamBlockAttention(stream_spec(), group_layers=0, eps=1e-5)
