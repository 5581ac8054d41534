"""Static hyper-connections equal equations 1-5 of the paper, stream by stream."""

import pytest
import torch

from src.residual.hyperconn_static import StaticHyperConnections
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers
from tests.support import tiny_gpt


def test_it_equals_the_papers_recurrence() -> None:
    spec, branches, x0, n = stream_spec(), sublayers(6), embedding_like(), 3
    strategy = jittered(StaticHyperConnections(spec, n_stream=n, output_init_scale=1.0))
    streams = [x0] * n
    for k, branch in enumerate(branches):
        a, b = strategy.a_SNM[k], strategy.b_SN[k]
        u = sum(a[i, 0] * streams[i] for i in range(n))
        mixed = [sum(a[i, 1 + j] * streams[i] for i in range(n)) for j in range(n)]
        y = branch(u)
        streams = [mixed[j] + b[j] * y for j in range(n)]
    assert torch.allclose(flow(strategy, spec, x0, branches), sum(streams) / n, rtol=0, atol=1e-12)


def test_at_init_sites_read_the_streams_in_turn() -> None:
    strategy = StaticHyperConnections(stream_spec(), n_stream=4, output_init_scale=1.0)
    assert strategy.a_SNM[:, :, 0].argmax(1).tolist() == [0, 1, 2, 3, 0, 1]
    assert sum(p.numel() for p in strategy.parameters()) == 6 * 4 * 6


def test_a_single_stream_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"n_stream must be >= 2, got 1; use residual=vanilla"):
        StaticHyperConnections(stream_spec(), n_stream=1, output_init_scale=1.0)


def test_output_init_scale_applies_to_output_projections_only() -> None:
    plain, scaled = tiny_gpt(), tiny_gpt("hyperconn_static", strategy={"output_init_scale": 0.5})
    for key, weight in plain.state_dict().items():
        factor = 0.5 if key.endswith("c_proj.weight") else 1.0
        assert torch.equal(scaled.state_dict()[key], factor * weight)
