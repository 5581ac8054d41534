"""Blending with x0 against modded-nanogpt."""

import pytest
import torch
from torch import Tensor

from src.residual.x0_blend import X0Blend, interpolate
from tests.oracle import compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import component, tiny_gpt


def test_it_equals_its_source() -> None:
    """KellerJordan/modded-nanogpt @ f411b3d, records/track_1_short/2024-11-06_ShortcutsTweaks, Block.forward."""
    spec = stream_spec()
    strategy: X0Blend = jittered(component("residual", "x0_blend")(spec))

    def record(x0: Tensor, branches: Sublayers) -> Tensor:
        x = x0
        for i in range(3):
            lambdas = strategy.keep_L[i], strategy.blend_L[i]
            x = lambdas[0] * x + lambdas[1] * x0
            x = x + branches[2 * i](x)
            x = x + branches[2 * i + 1](x)
        return x

    compare_flow(strategy, spec, record)


def test_initial_values_and_groups_are_the_sources() -> None:
    """KellerJordan/modded-nanogpt @ f411b3d, the same record: lambdas [1, 0], all under Adam(lr=0.02)."""
    gpt = tiny_gpt("x0_blend")
    assert gpt.residual.keep_L.tolist() == [1.0] * 3
    assert gpt.residual.blend_L.tolist() == [0.0] * 3
    groups = groups_by_name(gpt)
    assert groups["residual.keep_L"] == groups["residual.blend_L"] == (pytest.approx(0.02), 0.0)


def test_a_pair_is_a_line_over_the_blocks() -> None:
    assert torch.allclose(interpolate([1.15, 1.05], 3), torch.tensor([1.15, 1.10, 1.05]))
    assert interpolate((0.2, 0.05), 1).tolist() == [pytest.approx(0.2)]
    assert interpolate(2, 2).tolist() == [2.0, 2.0]


def test_without_a_rate_the_scales_are_relative_to_the_optimizers() -> None:
    groups = groups_by_name(tiny_gpt("x0_blend", strategy={"lr": None, "blend_lr_scale": 10.0}))
    assert groups["residual.keep_L"] == (pytest.approx(1e-3), 0.0)
    assert groups["residual.blend_L"] == (pytest.approx(1e-2), 0.0)
