"""LAuReL-LR against its equation.

Covers `src/residual/families/low_rank.py` too.
"""

import pytest
import torch

from src.residual.laurel_lr import LaurelLR
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_each_sum_adds_a_low_rank_map_of_the_stream() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LaurelLR(spec, rank=2))
    x = x0
    for k, branch in enumerate(branches):
        x = branch(x) + x + x @ (strategy.a_SDR[k] @ strategy.b_SRD[k])
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_a_starts_column_orthogonal_and_b_at_zero() -> None:
    strategy = LaurelLR(stream_spec(), rank=2)
    gram = strategy.a_SDR[3].T @ strategy.a_SDR[3]
    assert torch.allclose(gram, torch.eye(2) * gram[0, 0])
    assert not strategy.b_SRD.any()
    assert [group.decay for group in strategy.param_groups()] == [True]


def test_a_rank_above_the_width_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"residual.rank must be between 1 and n_embd=6, got 7"):
        LaurelLR(stream_spec(), rank=7)
