"""Backout against its equation."""

import pytest
import torch

from src.residual.backout import Backout
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


@pytest.mark.parametrize(("layer", "after"), [(None, 2), (0, 0), (3, 3)])
def test_the_middle_of_the_stream_is_subtracted_at_the_end(layer: int | None, after: int) -> None:
    spec, branches, x0 = stream_spec(4), sublayers(8), embedding_like()
    strategy = jittered(Backout(spec, backout_init=0.2, layer=layer))
    streams = [x0]
    for branch in branches:
        streams.append(streams[-1] + branch(streams[-1]))
    out = streams[-1] - strategy.backout * streams[2 * after + 2]
    assert torch.allclose(flow(strategy, spec, x0, branches), out, rtol=0, atol=1e-13)


def test_a_layer_out_of_bounds_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"residual.layer must be between 0 and 2, got 3; null selects the middle"):
        Backout(stream_spec(), backout_init=0.2, layer=3)
