"""LayerScale against its equation."""

from collections.abc import Callable

import pytest
import torch

from src.residual.layerscale import LayerScale
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_each_output_is_scaled_by_its_channels_gates() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LayerScale(spec, gate_init=0.1))
    x = x0
    for k in range(6):
        x = x + branches[k](x) @ strategy.gate_SD[k].diag()
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("n_layer", "gate"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_the_initial_gate_follows_the_depth(n_layer: int, gate: float) -> None:
    strategy = LayerScale(stream_spec(n_layer), gate_init=None)
    assert torch.equal(strategy.gate_SD, torch.full((2 * n_layer, 6), gate))


def test_an_explicit_gate_holds_at_any_depth() -> None:
    assert LayerScale(stream_spec(24), gate_init=0.5).gate_SD.eq(0.5).all()


def test_it_equals_the_published_package_with_the_same_gates() -> None:
    package = pytest.importorskip("x_transformers.x_transformers", reason="optional: pip install x-transformers")
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LayerScale(spec, gate_init=0.1))
    x = x0
    for k, branch in enumerate(branches):
        theirs = package.LayerScale(_Function(branch), 6).double()
        theirs.load_state_dict({"gamma": strategy.gate_SD[k]})
        x = x + theirs(x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


class _Function(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)
