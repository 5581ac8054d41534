"""The norm-preserving residual against marin's experiment."""

import math

import torch
from torch import Tensor

from src.residual.base import build_plain_sites
from src.residual.norm_preserving import NormPreserving
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """marin-community/marin @ 959fdb2, experiments/grug/moe_norm_preserving_residual/model.py, `Block.__call__`."""
    spec = stream_spec()
    strategy = jittered(NormPreserving(spec, theta_init=0.0))

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        for layer in range(3):
            beta = torch.log1p(torch.exp(strategy.theta_L[layer]))
            for sublayer in branches[2 * layer : 2 * layer + 2]:
                x = torch.sqrt(1 - beta / 3) * x + torch.sqrt(beta / 3) * sublayer(x)
        return x

    compare_flow(strategy, spec, oracle)


def test_initial_weights_are_the_sources() -> None:
    """The logbook of issue 8860 for six and eight layers; theta has Adam's rate and no weight decay (optimizer.py)."""
    for n_layer, weights in ((6, (0.940466, 0.339889)), (8, (0.955697, 0.294353))):
        strategy = NormPreserving(stream_spec(n_layer), theta_init=0.0)
        site, zero, one = build_plain_sites(n_layer)[3], torch.zeros(1, 1, 6), torch.ones(1, 1, 6)
        assert math.isclose(strategy.write(one, site, zero)[0, 0, 0].item(), weights[0], abs_tol=5e-7)
        assert math.isclose(strategy.write(zero, site, one)[0, 0, 0].item(), weights[1], abs_tol=5e-7)
    gpt = tiny_gpt("norm_preserving")
    assert gpt.residual.theta_L.tolist() == [0.0] * 3
    assert groups_by_name(gpt)["residual.theta_L"] == (LR, 0.0)


def test_a_share_beyond_one_is_capped_with_finite_gradients() -> None:
    """test_norm_preserving_residual.py of the source: theta = 100 at six layers gives finite weights of squared sum 1."""
    strategy = NormPreserving(stream_spec(6), theta_init=100.0)
    site, x, y = build_plain_sites(6)[0], torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    mixed = strategy.write(x, site, y)
    assert 0 < mixed[0, 0, 0] < mixed[0, 0, 1] < 1
    assert math.isclose(mixed.square().sum().item(), 1.0, rel_tol=1e-6)
    mixed.sum().backward()
    assert torch.isfinite(strategy.theta_L.grad).all()
