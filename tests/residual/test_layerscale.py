"""LayerScale against its source."""

import pytest
import torch
from torch import Tensor

from src.residual.layerscale import LayerScale
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """facebookresearch/deit @ 7e160fe, cait_models.py, `LayerScale_Block`."""
    spec = stream_spec()
    strategy = jittered(LayerScale(spec, gate_init=0.1))
    (gamma,) = strategy.parameters()

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        for layer in range(3):
            gamma_1, gamma_2 = gamma[2 * layer], gamma[2 * layer + 1]
            x = x + gamma_1 * branches[2 * layer](x)
            x = x + gamma_2 * branches[2 * layer + 1](x)
        return x

    compare_flow(strategy, spec, oracle)


@pytest.mark.parametrize(("n_layer", "gate"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_the_initial_gate_follows_the_depth_as_in_its_source(n_layer: int, gate: float) -> None:
    """arXiv 2103.17239, section 2; facebookresearch/deit @ 7e160fe: 1e-5 in `cait_S24`, 1e-6 in `cait_S36`."""
    strategy = LayerScale(stream_spec(n_layer), gate_init=None)
    assert torch.equal(strategy.gate_SD, torch.full((2 * n_layer, 6), gate))


def test_the_groups_are_those_of_its_source() -> None:
    """The same repository, main.py: timm's optimizer, which does not decay one-dimensional parameters."""
    assert groups_by_name(tiny_gpt("layerscale"))["residual.gate_SD"] == (LR, 0.0)


def test_an_explicit_gate_holds_at_any_depth() -> None:
    assert LayerScale(stream_spec(24), gate_init=0.5).gate_SD.eq(0.5).all()
