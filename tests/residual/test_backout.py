"""Backout against nanochat and modded-nanogpt."""

import pytest
from torch import Tensor

from src.residual.backout import Backout
from tests.oracle import compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import component, tiny_gpt


@pytest.mark.parametrize(("n_layer", "layer"), [(4, None), (5, None), (12, 8)])
def test_it_equals_its_source(n_layer: int, layer: int | None) -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py, GPT.forward: backout_layer = n_layer // 2.

    KellerJordan/modded-nanogpt @ f411b3d, records/track_1_short/2025-10-04_Backout: layer 8 of 12.
    """
    spec = stream_spec(n_layer)
    strategy: Backout = jittered(component("residual", "backout", layer=layer)(spec))
    backout_layer = n_layer // 2 if layer is None else layer

    def nanochat(x: Tensor, branches: Sublayers) -> Tensor:
        x_backout = None
        for i in range(n_layer):
            x = x + branches[2 * i](x)
            x = x + branches[2 * i + 1](x)
            if i == backout_layer:
                x_backout = x
        assert x_backout is not None
        return x - strategy.backout * x_backout

    compare_flow(strategy, spec, nanochat)


def test_initial_value_and_group_are_the_sources() -> None:
    """karpathy/nanochat @ 92d63d4, nanochat/gpt.py: 0.2 (init_weights), lr 0.2 without decay (setup_optimizer)."""
    gpt = tiny_gpt("backout")
    assert gpt.residual.backout.tolist() == [pytest.approx(0.2)]
    assert groups_by_name(gpt)["residual.backout"] == (pytest.approx(0.2), 0.0)


def test_a_layer_out_of_bounds_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"residual.layer must be between 0 and 2, got 3; null selects the middle"):
        component("residual", "backout", layer=3)(stream_spec())
