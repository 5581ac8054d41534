"""Block attention residuals equal equations 5 and 6 with the sources of every site written out.

Covers `src/residual/families/groups.py` too.
"""

import pytest
import torch
from torch import Tensor

from src.residual.attnres import AttentionResiduals
from src.residual.attnres_block import BlockAttentionResiduals
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


def attend(sources: list[Tensor], query: Tensor, gain: Tensor) -> Tensor:
    """Write out the paper's `block_attn_res` (figure 2)."""
    v = torch.stack(sources)
    k = torch.nn.functional.rms_norm(v, v.shape[-1:], gain, eps=1e-5)
    logits = torch.einsum("d,nbtd->nbt", query, k)
    return torch.einsum("nbt,nbtd->btd", logits.softmax(0), v)


@pytest.mark.parametrize(("n_layer", "n_block", "group_sites"), [(3, 1, 6), (3, 2, 3), (3, 3, 2), (5, 3, 4)])
def test_it_equals_its_source(n_layer: int, n_block: int, group_sites: int) -> None:
    """Equations 5-6 of arXiv 2603.15031; the final output layer aggregates all blocks."""
    spec = stream_spec(n_layer)
    strategy = jittered(BlockAttentionResiduals(spec, n_block=n_block, eps=1e-5))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        y: list[Tensor] = []
        for k in range(2 * n_layer + 1):
            done = k // group_sites
            groups = [sum(y[n * group_sites : (n + 1) * group_sites]) for n in range(done)]
            current = y[done * group_sites :]
            sources = [x0, *groups, *([sum(current)] if current else [])]
            h = x0 if k == 0 else attend(sources, strategy.query_QD[k - 1], strategy.key_gain_QD[k - 1])
            if k < 2 * n_layer:
                y.append(branches[k](h))
        return h

    compare_flow(strategy, spec, oracle)


def test_the_pseudo_code_of_figure_2_is_the_same_if_its_list_starts_empty() -> None:
    """Its running sum at the first site of a block is the whole sum of the block before, and x0 at the very first."""
    spec = stream_spec()
    strategy = jittered(BlockAttentionResiduals(spec, n_block=2, eps=1e-5))
    rows = [(q, g) for q, g in zip(strategy.query_QD, strategy.key_gain_QD, strict=True)]

    def figure(x0: Tensor, branches: Sublayers) -> Tensor:
        blocks: list[Tensor] = []
        partial: Tensor | None = x0
        for k, branch in enumerate(branches):
            sources = [*blocks, *([] if partial is None else [partial])]
            h = x0 if k == 0 else attend(sources, *rows[k - 1])
            if k % 3 == 0:  # a new block of three sublayers
                assert partial is not None
                blocks, partial = [*blocks, partial], None
            out = branch(h)
            partial = out if partial is None else partial + out
        assert partial is not None
        return attend([*blocks, partial], *rows[-1])

    compare_flow(strategy, spec, figure)


def test_initial_values_and_groups_are_the_papers() -> None:
    """Section 5: all queries are zero; the hyperparameters are those of the baseline."""
    gpt = tiny_gpt("attnres_block")
    assert not gpt.residual.query_QD.any()
    assert torch.equal(gpt.residual.key_gain_QD, torch.ones(6, 16))
    groups = groups_by_name(gpt)
    assert groups["residual.query_QD"] == groups["residual.key_gain_QD"] == (LR, 0.0)


def test_groups_of_one_sublayer_equal_attnres() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    blocks = jittered(BlockAttentionResiduals(spec, n_block=8, eps=1e-5))
    full = jittered(AttentionResiduals(spec, eps=1e-5))
    assert torch.allclose(flow(blocks, spec, x0, branches), flow(full, spec, x0, branches), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("n_layer", "sites", "words"),
    [
        (24, 6, "8 groups of 6 sublayers"),
        (12, 3, "8 groups of 3 sublayers"),
        (6, 2, "6 groups of 2 sublayers"),
        (3, 1, "6 groups of 1 sublayer"),
        (5, 2, "5 groups of 2 sublayers"),
        (13, 4, "7 groups of 4 sublayers, the last of 2"),
    ],
)
def test_the_groups_that_eight_are_at_a_depth_are_stated(n_layer: int, sites: int, words: str) -> None:
    strategy = BlockAttentionResiduals(stream_spec(n_layer), n_block=8, eps=1e-5)
    assert strategy.group_sites == sites
    assert strategy.describe() == words


def test_n_block_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"n_block must be >= 1, got 0"):
        BlockAttentionResiduals(stream_spec(), n_block=0, eps=1e-5)
