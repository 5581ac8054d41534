"""Highway gates against the paper."""

import pytest
import torch

from src.residual.highway import Highway
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """arXiv 1505.00387, equation 3 with T(x) = sigmoid(W_T x + b_T) of section 2.2, where W_T has rank 2."""
    spec = stream_spec()
    strategy = jittered(Highway(spec, rank=2, bias_init=-2.0))

    def oracle(x: torch.Tensor, branches: Sublayers) -> torch.Tensor:
        for k, branch in enumerate(branches):
            weight = strategy.down_SDR[k] @ strategy.up_SRD[k]
            transform = 1 / (1 + torch.exp(-(x @ weight + strategy.bias_SD[k])))
            x = branch(x) * transform + x * (1 - transform)
        return x

    compare_flow(strategy, spec, oracle)


def test_gates_start_with_a_negative_bias() -> None:
    """Section 2.2 of the paper suggests biases of -1, -2 and -3 for 10, 20 and 30 layers; a model here has 24 sites."""
    gpt = tiny_gpt("highway")
    assert torch.equal(gpt.residual.bias_SD, torch.full((6, 16), -2.0))
    assert not gpt.residual.up_SRD.any()
    rates = groups_by_name(gpt)
    assert {rates[f"residual.{name}"] for name in ("down_SDR", "up_SRD")} == {(LR, WEIGHT_DECAY)}
    assert rates["residual.bias_SD"] == (LR, 0.0)


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
