"""ReZero against its recurrence."""

import torch

from src.residual.rezero import ReZero
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_each_branch_has_its_own_gate() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(ReZero(spec, gate_init=0.0, lr_scale=1.0))
    x = x0
    for k, branch in enumerate(branches):
        x = x + strategy.gate_S[k] * branch(x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_it_starts_as_the_identity() -> None:
    spec, x0 = stream_spec(), embedding_like()
    assert torch.equal(flow(ReZero(spec, gate_init=0.0, lr_scale=1.0).double(), spec, x0, sublayers(6)), x0)
