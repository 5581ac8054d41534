"""U-Net skips against an explicit stack."""

import pytest
import torch

from src.residual.unet_skips import UNetSkips
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt, tokens


@pytest.mark.parametrize("n_layer", [2, 4, 5])
def test_the_second_half_adds_the_streams_of_the_first_in_reverse(n_layer: int) -> None:
    spec, branches, x0 = stream_spec(n_layer), sublayers(2 * n_layer), embedding_like()
    strategy = jittered(UNetSkips(spec, skip_init=1.0))
    x, stack = x0, []
    for i in range(n_layer):
        if i >= n_layer // 2 and stack:
            x = x + strategy.w_L[i - n_layer // 2] * stack.pop()
        x = x + branches[2 * i](x)
        x = x + branches[2 * i + 1](x)
        if i < n_layer // 2:
            stack.append(x)
    assert len(strategy.w_L) == n_layer // 2
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_without_skips_it_is_vanilla() -> None:
    ours, plain = tiny_gpt("unet_skips", strategy={"skip_init": 0.0}), tiny_gpt()
    assert torch.equal(ours(tokens()), plain(tokens()))


def test_one_layer_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs model.n_layer >= 2, got 1"):
        UNetSkips(stream_spec(1), skip_init=1.0)
