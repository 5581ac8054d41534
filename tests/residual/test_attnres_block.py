"""Block attention residuals against the paper's stacked equations."""

import pytest
import torch

from src.residual.attnres import AttentionResiduals
from src.residual.attnres_block import BlockAttentionResiduals
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def stacked(strategy: BlockAttentionResiduals, sources: list[torch.Tensor], query: int) -> torch.Tensor:
    v = torch.stack(sources)
    key = v * (v.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * strategy.key_gain_QD[query]
    return (torch.softmax((key * strategy.query_QD[query]).sum(-1, keepdim=True), dim=0) * v).sum(0)


@pytest.mark.parametrize(("n_block", "size"), [(6, 1), (3, 2), (2, 3), (1, 6), (4, 2), (5, 2)])
def test_it_is_the_papers_mixture_of_blocks(n_block: int, size: int) -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(BlockAttentionResiduals(spec, n_block=n_block, eps=1e-5))
    blocks, inside = [x0], []
    for k, branch in enumerate(branches):
        sources = [*blocks, *([sum(inside)] if inside else [])]
        y = branch(stacked(strategy, sources, k - 1) if k else x0)
        inside.append(y)
        if len(inside) == size:
            blocks.append(sum(inside))
            inside = []
    expected = stacked(strategy, [*blocks, *([sum(inside)] if inside else [])], 5)
    assert torch.allclose(flow(strategy, spec, x0, branches), expected, rtol=0, atol=1e-12)


def test_blocks_of_one_are_full_attention_residuals() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    block = jittered(BlockAttentionResiduals(spec, n_block=6, eps=1e-5))
    full = AttentionResiduals(spec, eps=1e-5).double()
    full.load_state_dict(block.state_dict())
    assert torch.allclose(flow(block, spec, x0, branches), flow(full, spec, x0, branches), atol=1e-13)


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n_block must be at least 1, got 0"):
        BlockAttentionResiduals(stream_spec(), n_block=0, eps=1e-5)
