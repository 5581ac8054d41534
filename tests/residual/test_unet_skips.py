"""U-Net skips against modded-nanogpt."""

import pytest
import torch
from torch import Tensor

from src.residual.unet_skips import UNetSkips
from tests.oracle import compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import component, tiny_gpt, tokens


@pytest.mark.parametrize("n_layer", [2, 4, 5])
def test_it_equals_its_source(n_layer: int) -> None:
    """KellerJordan/modded-nanogpt @ f411b3d, records/track_1_short/2024-11-10_UNetDoubleLr, GPT.forward.

    The record has an even number of layers; openai/parameter-golf @ 4908dc4, train_gpt.py, has the rule for odd ones.
    """
    spec = stream_spec(n_layer)
    strategy: UNetSkips = jittered(component("residual", "unet_skips")(spec))
    encoder_layers = n_layer // 2

    def record(x: Tensor, branches: Sublayers) -> Tensor:
        skip_connections = []
        for i in range(encoder_layers):
            x = x + branches[2 * i](x)
            x = x + branches[2 * i + 1](x)
            skip_connections.append(x)
        for i in range(n_layer - encoder_layers):
            if skip_connections:
                x = x + strategy.w_L[i] * skip_connections.pop()
            x = x + branches[2 * (encoder_layers + i)](x)
            x = x + branches[2 * (encoder_layers + i) + 1](x)
        return x

    assert len(strategy.w_L) == encoder_layers
    compare_flow(strategy, spec, record)


def test_initial_values_and_groups_are_the_sources() -> None:
    """KellerJordan/modded-nanogpt @ f411b3d, the same record: skip_weights of ones under Adam(lr=0.04)."""
    gpt = tiny_gpt("unet_skips", n_layer=4)
    assert gpt.residual.w_L.tolist() == [1.0, 1.0]
    assert groups_by_name(gpt)["residual.w_L"] == (pytest.approx(0.04), 0.0)


def test_without_skips_it_is_vanilla() -> None:
    ours, plain = tiny_gpt("unet_skips", strategy={"skip_init": 0.0}), tiny_gpt()
    assert torch.equal(ours(tokens()), plain(tokens()))


def test_one_layer_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"needs model.n_layer >= 2, got 1"):
        component("residual", "unet_skips")(stream_spec(1))
