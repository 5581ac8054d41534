"""LAuReL-RW+LR against the code of a factory of connections and the paper's equation."""

import torch
from torch import Tensor

from src.residual.laurel_rw_lr import LaurelRWLR
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """wdlctc/hyper-connection-factory @ 412aeba, hcfactory/connections/laurel.py, rw_lr; arXiv 2411.07501, equation 5."""
    spec = stream_spec()
    strategy = jittered(LaurelRWLR(spec, rank=2))

    def factory(x: Tensor, branches: Sublayers) -> Tensor:
        for k, branch in enumerate(branches):
            exp = torch.exp(strategy.w_S2[k])
            skip = x + x @ strategy.a_SDR[k] @ strategy.b_SRD[k]
            x = 2 * exp[0] / exp.sum() * branch(x) + 2 * exp[1] / exp.sum() * skip
        return x

    compare_flow(strategy, spec, factory)


def test_initial_values_and_groups_are_the_sources() -> None:
    """wdlctc/hyper-connection-factory @ 412aeba: w and B zero (laurel.py), lr x 1 without decay (train.py)."""
    gpt = tiny_gpt("laurel_rw_lr")
    assert not gpt.residual.w_S2.any()
    assert not gpt.residual.b_SRD.any()
    groups = groups_by_name(gpt)
    assert {groups[name] for name in groups if name.startswith("residual.")} == {(LR, 0.0)}
