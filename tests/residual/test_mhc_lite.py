"""mHC-lite equals the code of its authors.

Covers `src/residual/families/permutation_streams.py` too.
"""

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.mhc_lite import ManifoldHyperConnectionsLite
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt

KEYS: dict[str, Any] = {"n_stream": 3, "scale_init": 0.01, "gate_logit": 1.0, "res_logit": -8.0, "eps": 1e-12}


def test_it_equals_its_source() -> None:
    """Compare with FFTYYY/mhc-lite @ ea19775, `hyper_conn/mhc_lite.py`, and `model.py`, which sums normed streams."""
    spec, s, width = stream_spec(), 3, 18
    strategy = jittered(ManifoldHyperConnectionsLite(spec, **KEYS))
    perm_mats = torch.eye(s, dtype=torch.float64)[torch.tensor(list(permutations(range(s))))]

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        residuals = x0.unsqueeze(2).expand(-1, -1, s, -1)
        for k, branch in enumerate(branches):
            normed = F.normalize(residuals.flatten(2), dim=-1) * width**0.5 * strategy.gain_SV[k]
            pre_fn, beta_fn, res_fn = strategy.phi_SCV[k].T.split((s, s, 6), dim=1)
            static_pre, static_beta, static_res = strategy.bias_SC[k].split((s, s, 6))
            pre_branch_scale, h_post_scale, residual_scale = strategy.scale_S3[k]
            alpha_pre = (pre_branch_scale * (normed @ pre_fn) + static_pre).sigmoid()
            coefficients = (residual_scale * (normed @ res_fn) + static_res).softmax(-1)
            alpha_residual = torch.einsum("...r,rij->...ij", coefficients, perm_mats)
            beta = (h_post_scale * (normed @ beta_fn) + static_beta).sigmoid() * 2
            alpha = torch.cat((alpha_pre.unsqueeze(-1), alpha_residual), dim=-1)
            mix_h = torch.einsum("...st,...sd->...td", alpha, residuals)
            y = branch(mix_h[..., 0, :])
            residuals = torch.einsum("...d,...s->...sd", y, beta) + mix_h[..., 1:, :]
        normed = F.layer_norm(residuals, (6,), strategy.norm.weight, strategy.norm.bias)
        return normed.sum(2)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """FFTYYY/mhc-lite @ ea19775, `MHCLite.__init__`; `configure_optimizers` of `model.py` decays matrices only."""
    gpt = tiny_gpt("mhc_lite", bias=True)
    strategy = gpt.residual
    assert torch.equal(strategy.scale_S3, torch.full((6, 3), 0.01))
    assert strategy.phi_SCV.eq(0).all()
    assert strategy.gain_SV.eq(1).all()
    read_SN, write_SN, res_SR = strategy.bias_SC.split((4, 4, 24), dim=1)
    assert torch.equal(read_SN, write_SN)
    assert read_SN.sort(dim=1).values.tolist() == [[-1.0, -1.0, -1.0, 1.0]] * 6
    assert res_SR.tolist() == [[0.0] + [-8.0] * 23] * 6
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    others = ("gain_SV", "scale_S3", "bias_SC", "norm.weight", "norm.bias")
    assert groups == {
        "residual.phi_SCV": (LR, WEIGHT_DECAY),
        **{f"residual.{name}": (LR, 0.0) for name in others},
    }


def test_each_site_draws_the_stream_that_it_reads() -> None:
    drawn = [tuple(tiny_gpt("mhc_lite", seed=seed).residual.bias_SC[:, :4].argmax(1).tolist()) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_the_first_permutation_is_the_identity_and_no_buffer_is_saved() -> None:
    strategy = ManifoldHyperConnectionsLite(stream_spec(), **KEYS)
    assert torch.equal(strategy.perm_RNN[0], torch.eye(3))
    assert strategy.state_dict().keys() == dict(strategy.named_parameters()).keys()


def test_the_size_of_a_stream_does_not_change_its_vote() -> None:
    strategy = ManifoldHyperConnectionsLite(stream_spec(), **KEYS).double()
    h_BTND = torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    out = [strategy.end(strategy.begin(h_BTND[:, :, 0])._replace(h_BTND=h)) for h in (h_BTND, h_BTND * 100)]
    assert torch.allclose(*out, rtol=0, atol=1e-3)


def test_too_many_streams_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"n_stream must be <= 5 .* got 6; for more streams use residual=mhc"):
        ManifoldHyperConnectionsLite(stream_spec(), **{**KEYS, "n_stream": 6})
