"""Frac-connections against their equations written out, and the paper's count."""

import pytest
import torch
from torch.nn import functional as F

from src.residual.frac_connections import FracConnections
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


def test_it_equals_the_papers_recurrence() -> None:
    spec, branches, x0, m = stream_spec(), sublayers(6), embedding_like(), 3
    strategy = jittered(FracConnections(spec, n_frac=m, scale_init=0.01))
    h = x0.view(2, 4, m, 2)
    for k, branch in enumerate(branches):
        normed = F.layer_norm(h, (2,), strategy.norm_weight_SF[k], strategy.norm_bias_SF[k], 1e-5)
        dynamic = torch.tanh(normed @ strategy.w_SFC[k])
        a = strategy.a_SNM[k] + strategy.scale_S2[k, 0] * dynamic[..., : 2 * m]
        b = strategy.b_SN[k] + strategy.scale_S2[k, 1] * dynamic[..., 2 * m]
        u = torch.einsum("btnm,btnf->btmf", a[..., :m], h).reshape(x0.shape)
        y = branch(u).view(2, 4, m, 2)
        h = torch.einsum("btnm,btnf->btmf", a[..., m:], h) + b.unsqueeze(-1) * y
    assert torch.allclose(flow(strategy, spec, x0, branches), h.reshape(x0.shape), rtol=0, atol=1e-11)


def test_the_parameter_count_is_the_papers() -> None:
    strategy = FracConnections(stream_spec(24, 1024), n_frac=4, scale_init=0.01)
    assert sum(p.numel() for p in strategy.parameters()) == 136_992
    assert [g.decay for g in strategy.param_groups()] == [True, False]


@pytest.mark.parametrize("n_frac", [1, 4])
def test_fractions_that_do_not_divide_the_width_raise_an_error(n_frac: int) -> None:
    with pytest.raises(ValueError, match=rf">= 2 and divide model.n_embd=6, got {n_frac}"):
        FracConnections(stream_spec(), n_frac=n_frac, scale_init=0.01)
