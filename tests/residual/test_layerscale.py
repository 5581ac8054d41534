"""LayerScale against its recurrence."""

import pytest
import torch

from src.residual.layerscale import LayerScale
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_each_branch_has_a_vector_of_its_own() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LayerScale(spec, gate_init=0.1))
    x = x0
    for k, branch in enumerate(branches):
        x = x + strategy.gate_SD[k] * branch(x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-13)


def test_the_count_is_the_published_one() -> None:
    spec = stream_spec(24, 1024)
    assert sum(p.numel() for p in LayerScale(spec, gate_init=1e-5).parameters()) == 49_152


def test_the_initial_gate_follows_the_depth() -> None:
    for n_layer, gate in ((18, 0.1), (24, 1e-5), (25, 1e-6)):
        assert LayerScale(stream_spec(n_layer), gate_init=None).gate_SD[0, 0].item() == pytest.approx(gate)
