"""Cached attention read against the source's loop."""

import pytest
import torch

from src.residual.cached_attn_read import CachedAttentionRead
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers


@pytest.mark.parametrize("late_layers", [1, 2, 3, 4])
def test_it_equals_the_sources_loop(late_layers: int) -> None:
    spec, branches, x0 = stream_spec(4), sublayers(8), embedding_like()
    x, cached = x0, None
    if late_layers == 4:
        cached = x0
    for i in range(4):
        x = x + branches[2 * i](x if cached is None else cached)
        x = x + branches[2 * i + 1](x)
        if i == 4 - late_layers - 1:
            cached = x
    strategy = CachedAttentionRead(spec, late_layers=late_layers)
    assert torch.equal(flow(strategy, spec, x0, branches), x)


@pytest.mark.parametrize(("n_layer", "first_late"), [(11, 8), (24, 17), (3, 1), (1, 0)])
def test_the_sources_share_of_the_depth_is_the_default(n_layer: int, first_late: int) -> None:
    assert CachedAttentionRead(stream_spec(n_layer), late_layers=None).first_late == first_late


def test_more_late_layers_than_layers_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"late_layers must be between 1 and 3, got 4"):
        CachedAttentionRead(stream_spec(3), late_layers=4)
