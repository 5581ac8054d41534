"""LAuReL-LR against the code of a factory of connections and the paper's equation.

Covers `src/residual/families/low_rank.py` too.
"""

import math

import pytest
from torch import Tensor

from src.residual.laurel_lr import LaurelLR
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """wdlctc/hyper-connection-factory @ 412aeba, hcfactory/connections/laurel.py, variant lr; arXiv 2411.07501, eq. 3."""
    spec = stream_spec()
    strategy = jittered(LaurelLR(spec, rank=2))

    def factory(x: Tensor, branches: Sublayers) -> Tensor:
        for k, branch in enumerate(branches):
            skip = x + x @ (strategy.a_SDR[k] @ strategy.b_SRD[k])
            x = branch(x) + skip
        return x

    compare_flow(strategy, spec, factory)


def test_initial_values_and_groups_are_the_sources() -> None:
    """wdlctc/hyper-connection-factory @ 412aeba: A[i, j] = 1 / sqrt(r D) if i mod r = j; no decay (train.py)."""
    gpt = tiny_gpt("laurel_lr", strategy={"rank": 3})
    for a_DR in gpt.residual.a_SDR:
        assert [
            [pytest.approx(1 / math.sqrt(3 * 16)) if i % 3 == j else 0.0 for j in range(3)] for i in range(16)
        ] == a_DR.tolist()
    assert not gpt.residual.b_SRD.any()
    groups = groups_by_name(gpt)
    assert groups["residual.a_SDR"] == groups["residual.b_SRD"] == (LR, 0.0)


def test_a_rank_above_the_width_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"residual.rank must be between 1 and n_embd=6, got 7"):
        LaurelLR(stream_spec(), rank=7)
