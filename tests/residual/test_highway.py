"""Highway gates against their equation."""

import pytest
import torch

from src.residual.highway import Highway
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_a_gate_interpolates_between_stream_and_branch() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(Highway(spec, rank=2, bias_init=-2.0))
    x = x0
    for k, branch in enumerate(branches):
        gate = torch.sigmoid(x @ (strategy.down_SDR[k] @ strategy.up_SRD[k]) + strategy.bias_SD[k])
        x = (1 - gate) * x + gate * branch(x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_at_init_a_branch_has_weight_0_12() -> None:
    spec, x0 = stream_spec(1), embedding_like()
    strategy = Highway(spec, rank=2, bias_init=-2.0).double()
    strategy.reset()
    state = strategy.write(x0, spec.sites[0], torch.zeros_like(x0))
    assert torch.allclose(state, x0 * 0.8807971, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 7])
def test_a_rank_out_of_bounds_is_an_error(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"residual.rank must be between 1 and n_embd=6, got {rank}"):
        Highway(stream_spec(), rank=rank, bias_init=-2.0)
