"""Block attention residuals equal equations 5 and 6 with the sources of every site written out."""

import pytest
import torch
from torch import Tensor

from src.residual.attnres import AttentionResiduals
from src.residual.attnres_block import BlockAttentionResiduals
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def attend(strategy: BlockAttentionResiduals, query: int, sources: list[Tensor]) -> Tensor:
    v = torch.stack(sources)
    key = v * (v.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * strategy.key_gain_QD[query]
    return (torch.softmax((key * strategy.query_QD[query]).sum(-1, keepdim=True), dim=0) * v).sum(0)


@pytest.mark.parametrize(("n_layer", "n_block", "group_sites"), [(3, 1, 6), (3, 2, 3), (3, 3, 2), (5, 3, 4)])
def test_it_equals_the_papers_mixture_of_finished_groups_and_the_partial_sum(
    n_layer: int, n_block: int, group_sites: int
) -> None:
    spec, branches, x0 = stream_spec(n_layer), sublayers(2 * n_layer), embedding_like()
    strategy = jittered(BlockAttentionResiduals(spec, n_block=n_block, eps=1e-5))
    y: list[Tensor] = []
    for k in range(2 * n_layer + 1):
        done = k // group_sites
        groups = [sum(y[n * group_sites : (n + 1) * group_sites]) for n in range(done)]
        current = y[done * group_sites :]
        sources = [x0, *groups, *([sum(current)] if current else [])]
        h = x0 if k == 0 else attend(strategy, k - 1, sources)
        if k < 2 * n_layer:
            y.append(branches[k](h))
    assert torch.allclose(flow(strategy, spec, x0, branches), h, rtol=0, atol=1e-12)


def test_groups_of_one_sublayer_equal_attnres() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    blocks = jittered(BlockAttentionResiduals(spec, n_block=8, eps=1e-5))
    full = jittered(AttentionResiduals(spec, eps=1e-5))
    assert torch.allclose(flow(blocks, spec, x0, branches), flow(full, spec, x0, branches), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_layer", "sites"), [(24, 6), (12, 3), (3, 1), (5, 2)])
def test_the_size_of_eight_groups_follows_the_depth(n_layer: int, sites: int) -> None:
    assert BlockAttentionResiduals(stream_spec(n_layer), n_block=8, eps=1e-5).group_sites == sites


def test_n_block_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"n_block must be >= 1, got 0"):
        BlockAttentionResiduals(stream_spec(), n_block=0, eps=1e-5)
