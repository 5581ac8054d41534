"""Channel-wise dense residual against its two equations."""

import torch

from src.residual.channel_dense import ChannelDense
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_it_equals_the_submissions_two_equations() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(ChannelDense(spec))
    h = [x0]
    for i in range(3):
        first = i * (i + 1) // 2
        w_in, w_out = (w[first : first + i + 1] for w in (strategy.w_in_PD, strategy.w_out_PD))
        x_in = h[i] + sum(h[j] * w_in[j] for j in range(i + 1))
        inside = x_in + branches[2 * i](x_in)
        block = inside + branches[2 * i + 1](inside)
        h.append(h[i] + (block - x_in) + sum(h[j] * w_out[j] for j in range(i + 1)))
    assert torch.allclose(flow(strategy, spec, x0, branches), h[-1], rtol=0, atol=1e-12)


def test_it_has_no_unused_weights() -> None:
    strategy = ChannelDense(stream_spec(24, 1024))
    assert sum(p.numel() for p in strategy.parameters()) == 24 * 25 * 1024
