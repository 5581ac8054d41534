"""Channel-wise dense residual against its two equations."""

import torch
from torch import Tensor

from src.residual.channel_dense import ChannelDense
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-residual: the two equations of the published annotation b574219; no code is public."""
    strategy = jittered(ChannelDense(stream_spec()))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        h = [x0]
        for i in range(3):
            first = i * (i + 1) // 2
            w_in, w_out = (w[first : first + i + 1] for w in (strategy.w_in_PD, strategy.w_out_PD))
            x_in = h[i] + sum(h[j] * w_in[j] for j in range(i + 1))
            inside = x_in + branches[2 * i](x_in)
            block = inside + branches[2 * i + 1](inside)
            h.append(h[i] + (block - x_in) + sum(h[j] * w_out[j] for j in range(i + 1)))
        return h[-1]

    compare_flow(strategy, stream_spec(), oracle)


def test_it_has_no_unused_weights_and_starts_at_zero() -> None:
    strategy = ChannelDense(stream_spec(24, 1024))
    assert sum(p.numel() for p in strategy.parameters()) == 24 * 25 * 1024
    assert not torch.cat([p.flatten() for p in strategy.parameters()]).any()


def test_its_weights_are_not_decayed() -> None:
    groups = groups_by_name(tiny_gpt("channel_dense"))
    assert groups["residual.w_in_PD"] == groups["residual.w_out_PD"] == (LR, 0.0)
