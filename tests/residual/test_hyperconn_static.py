"""Static hyper-connections equal equations 1-5 of the paper, stream by stream."""

import pytest
import torch
from torch import Tensor

from src.residual.hyperconn_static import StaticHyperConnections
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """Compare with arXiv 2409.19606, equations 1-5; the streams are averaged where the paper sums them."""
    spec, n = stream_spec(), 3
    strategy = jittered(StaticHyperConnections(spec, n_stream=n, output_init_scale=1.0))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        streams = [x0] * n
        for k, branch in enumerate(branches):
            a, b = strategy.a_SNM[k], strategy.b_SN[k]
            y = branch(sum(a[i, 0] * streams[i] for i in range(n)))
            streams = [sum(a[i, 1 + j] * streams[i] for i in range(n)) + b[j] * y for j in range(n)]
        return sum(streams) / n

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """arXiv 2409.19606, equation 14; section 4: the static part has no weight decay."""
    gpt = tiny_gpt("hyperconn_static")
    strategy = gpt.residual
    assert strategy.a_SNM[:, :, 0].argmax(1).tolist() == [0, 1, 2, 3, 0, 1]
    assert strategy.a_SNM[:, :, 0].sum(1).eq(1).all()
    assert all(torch.equal(a_NN, torch.eye(4)) for a_NN in strategy.a_SNM[:, :, 1:])
    assert strategy.b_SN.eq(1).all()
    assert sum(p.numel() for p in strategy.parameters()) == 6 * 4 * 6
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    assert groups == {"residual.a_SNM": (LR, 0.0), "residual.b_SN": (LR, 0.0)}


def test_a_single_stream_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"n_stream must be >= 2, got 1; use residual=vanilla"):
        StaticHyperConnections(stream_spec(), n_stream=1, output_init_scale=1.0)


def test_output_init_scale_applies_to_output_projections_only() -> None:
    plain, scaled = tiny_gpt(), tiny_gpt("hyperconn_static", strategy={"output_init_scale": 0.5})
    for key, weight in plain.state_dict().items():
        factor = 0.5 if key.endswith("c_proj.weight") else 1.0
        assert torch.equal(scaled.state_dict()[key], factor * weight)
