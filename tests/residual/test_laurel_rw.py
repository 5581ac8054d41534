"""LAuReL-RW against its equation."""

import torch

from src.residual.laurel_rw import LaurelRW
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_branch_and_stream_weights_sum_to_two() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LaurelRW(spec))
    x = x0
    for w, branch in zip(strategy.w_S2, branches, strict=True):
        a = 2 / (1 + torch.exp(w[1] - w[0]))
        x = a * branch(x) + (2 - a) * x
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)
