"""SiameseNorm against its two streams written out."""

import torch

from src.residual.siamesenorm import SiameseNorm
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_it_equals_the_released_recurrence() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(SiameseNorm(spec))
    x = y = x0
    for k, branch in enumerate(branches):
        x = strategy.post_norms[k](x)
        z = branch(x + strategy.pre_norms[k](y))
        x, y = x + z / (2 * (k // 2 + 1)) ** 0.5, y + z
    out = strategy.post_norms[6](x) + strategy.pre_norms[6](y)
    assert torch.allclose(flow(strategy, spec, x0, branches), out, rtol=0, atol=1e-13)
