"""Frac-connections against their equations written out, and the paper's count."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.frac_connections import FracConnections
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """Compare with wdlctc/hyper-connection-factory @ 412aeba, `_HCSite` and `FracConnection` of `hyper.py`."""
    spec, m = stream_spec(), 3
    strategy = jittered(FracConnections(spec, n_frac=m, scale_init=0.01))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        h = x0.unflatten(-1, (m, -1))
        for k, branch in enumerate(branches):
            normed = F.layer_norm(h, (2,), strategy.norm_weight_SF[k], strategy.norm_bias_SF[k])
            dyn_alpha, dyn_beta = strategy.w_SFC[k, :, : 2 * m], strategy.w_SFC[k, :, 2 * m]
            alpha = strategy.scale_S2[k, 0] * torch.tanh(normed @ dyn_alpha) + strategy.a_SNM[k]
            beta = strategy.scale_S2[k, 1] * torch.tanh(normed @ dyn_beta) + strategy.b_SN[k]
            mix = torch.einsum("...nc,...ne->...ce", alpha, h)
            y = branch(mix[..., :m, :].flatten(-2)).unflatten(-1, (m, -1))
            h = mix[..., m:, :] + beta.unsqueeze(-1) * y
        return h.flatten(-2)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """arXiv 2503.14125, equation 15, algorithm 2 and section 4.3: B, Y and A have no weight decay, W has."""
    gpt = tiny_gpt("frac_connections")
    strategy = gpt.residual
    assert all(torch.equal(a_NM, torch.eye(4).repeat(1, 2)) for a_NM in strategy.a_SNM)
    assert strategy.b_SN.eq(1).all()
    assert strategy.w_SFC.eq(0).all()
    assert torch.equal(strategy.scale_S2, torch.full((6, 2), 0.01))
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    static = ("a_SNM", "b_SN", "norm_weight_SF", "norm_bias_SF", "scale_S2")
    assert groups == {
        "residual.w_SFC": (LR, WEIGHT_DECAY),
        **{f"residual.{name}": (LR, 0.0) for name in static},
    }


def test_the_parameter_count_is_the_papers() -> None:
    # Equation 19 with a LayerNorm of 2 * D / N parameters, 48 sites.
    strategy = FracConnections(stream_spec(24, 1024), n_frac=4, scale_init=0.01)
    assert sum(p.numel() for p in strategy.parameters()) == 136_992


@pytest.mark.parametrize("n_frac", [1, 4])
def test_fractions_that_do_not_divide_the_width_raise_an_error(n_frac: int) -> None:
    with pytest.raises(ValueError, match=rf">= 2 and divide model.n_embd=6, got {n_frac}"):
        FracConnections(stream_spec(), n_frac=n_frac, scale_init=0.01)
