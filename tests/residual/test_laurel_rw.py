"""LAuReL-RW against the code of a factory of connections and the paper's equation."""

import torch
from torch import Tensor

from src.residual.laurel_rw import LaurelRW
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """wdlctc/hyper-connection-factory @ 412aeba, hcfactory/connections/laurel.py, variant rw; arXiv 2411.07501, eq. 2."""
    spec = stream_spec()
    strategy = jittered(LaurelRW(spec))

    def factory(x: Tensor, branches: Sublayers) -> Tensor:
        for w, branch in zip(strategy.w_S2, branches, strict=True):
            exp = torch.exp(w)
            x = 2 * exp[0] / exp.sum() * branch(x) + 2 * exp[1] / exp.sum() * x
        return x

    compare_flow(strategy, spec, factory)


def test_initial_values_and_groups_are_the_sources() -> None:
    """wdlctc/hyper-connection-factory @ 412aeba: zeros (laurel.py); lr x 1 without decay (hcfactory/train.py)."""
    gpt = tiny_gpt("laurel_rw")
    assert not gpt.residual.w_S2.any()
    assert groups_by_name(gpt)["residual.w_S2"] == (LR, 0.0)
