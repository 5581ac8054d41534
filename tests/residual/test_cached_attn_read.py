"""Cached attention read against modded-nanogpt."""

import pytest
from torch import Tensor

from src.residual.cached_attn_read import CachedAttentionRead
from tests.oracle import compare_flow
from tests.residual.plain import Sublayers, stream_spec


@pytest.mark.parametrize(("n_layer", "late_layers", "cached_after"), [(11, None, 7), (4, 1, 2), (4, 3, 0), (4, 4, -1)])
def test_it_equals_its_source(n_layer: int, late_layers: int | None, cached_after: int) -> None:
    """KellerJordan/modded-nanogpt @ 81730c3, train_gpt.py, GPT.forward: attention reads the stream after layer 7 of 11.

    Without its carries and writes, embedding shortcut, skip past layer 6 and backout.
    """
    spec = stream_spec(n_layer)

    def record(x: Tensor, branches: Sublayers) -> Tensor:
        x_backout = x if cached_after == -1 else None
        for i in range(n_layer):
            attn_in = x_backout if x_backout is not None else x
            x = x + branches[2 * i](attn_in)
            x = x + branches[2 * i + 1](x)
            if i == cached_after:
                x_backout = x
        return x

    compare_flow(CachedAttentionRead(spec, late_layers=late_layers), spec, record)


@pytest.mark.parametrize(("n_layer", "first_late"), [(11, 8), (24, 17), (3, 1), (1, 0)])
def test_the_sources_share_of_the_depth_is_the_default(n_layer: int, first_late: int) -> None:
    assert CachedAttentionRead(stream_spec(n_layer), late_layers=None).first_late == first_late


def test_more_late_layers_than_layers_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"late_layers must be between 1 and 3, got 4"):
        CachedAttentionRead(stream_spec(3), late_layers=4)
