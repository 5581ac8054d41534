"""KromHC equals the code of its authors."""

from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.kromhc import KroneckerHyperConnections
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt

KEYS: dict[str, Any] = {"n_stream": 4, "scale_init": 0.01, "gate_logit": 1.0, "res_logit": -8.0, "eps": 1e-12}


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Return the Kronecker product of two stacks of matrices [..., A, A] and [..., B, B]."""
    product = torch.einsum("...ab,...cd->...acbd", left, right)
    return product.flatten(-2).flatten(-3, -2)


@pytest.mark.parametrize("s", [2, 4, 8])
def test_it_equals_its_source(s: int) -> None:
    """Compare with wz1119/KromHC @ 7b15834, `hyper_conn/Kromhc.py`; the readout is that of FFTYYY/mhc-lite."""
    spec, n_factor = stream_spec(), {2: 1, 4: 2, 8: 3}[s]
    strategy = jittered(KroneckerHyperConnections(spec, **{**KEYS, "n_stream": s}))

    def oracle(x0: Tensor, branches: Sublayers) -> Tensor:
        residuals = x0.unsqueeze(2).expand(-1, -1, s, -1)
        for k, branch in enumerate(branches):
            normed = F.normalize(residuals.flatten(2), dim=-1) * (s * 6) ** 0.5 * strategy.gain_SV[k]
            pre_fn, beta_fn, res_fn = strategy.phi_SCV[k].T.split((s, s, 2 * n_factor), dim=1)
            static_pre, static_beta, static_res = strategy.bias_SC[k].split((s, s, 2 * n_factor))
            pre_branch_scale, h_post_scale, residual_scale = strategy.scale_S3[k]
            coefficients = residual_scale * (normed @ res_fn) + static_res
            factors = []
            for pair in coefficients.split(2, dim=-1):
                p = pair.softmax(-1)[..., 0]
                rows = torch.stack([p, 1 - p], dim=-1), torch.stack([1 - p, p], dim=-1)
                factors.append(torch.stack(rows, dim=-2))
            alpha_pre = (pre_branch_scale * (normed @ pre_fn) + static_pre).sigmoid()
            alpha = torch.cat((alpha_pre.unsqueeze(-1), reduce(kronecker, factors)), dim=-1)
            beta = (h_post_scale * (normed @ beta_fn) + static_beta).sigmoid() * 2
            mix_h = torch.einsum("...st,...sd->...td", alpha, residuals)
            residuals = torch.einsum("...d,...s->...sd", branch(mix_h[..., 0, :]), beta) + mix_h[..., 1:, :]
        return F.layer_norm(residuals, (6,), strategy.norm.weight, strategy.norm.bias).sum(2)

    compare_flow(strategy, spec, oracle)


def test_initial_values_and_groups_are_the_sources() -> None:
    """wz1119/KromHC @ 7b15834, `KromHC.__init__`; matrices decay as in FFTYYY/mhc-lite, for which it is written."""
    gpt = tiny_gpt("kromhc", bias=True)
    strategy = gpt.residual
    assert torch.equal(strategy.scale_S3, torch.full((6, 3), 0.01))
    assert strategy.phi_SCV.eq(0).all()
    assert strategy.gain_SV.eq(1).all()
    read_SN, write_SN, res_SL = strategy.bias_SC.split((4, 4, 4), dim=1)
    assert torch.equal(read_SN, write_SN)
    assert read_SN.sort(dim=1).values.tolist() == [[-1.0, -1.0, -1.0, 1.0]] * 6
    assert res_SL.tolist() == [[0.0, -8.0, 0.0, -8.0]] * 6
    groups = {name: group for name, group in groups_by_name(gpt).items() if name.startswith("residual.")}
    assert {name for name, (_, decay) in groups.items() if decay} == {"residual.phi_SCV"}
    assert set(groups.values()) == {(LR, WEIGHT_DECAY), (LR, 0.0)}


def test_the_mixing_is_doubly_stochastic() -> None:
    strategy = jittered(KroneckerHyperConnections(stream_spec(), **{**KEYS, "n_stream": 8}))
    weight_BTR = strategy.weigh(torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    res_BTNN = torch.tensordot(weight_BTR, strategy.perm_RNN, dims=1)
    assert res_BTNN.ge(0).all()
    for dim in (-1, -2):
        assert torch.allclose(res_BTNN.sum(dim), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)


def test_streams_that_are_no_power_of_two_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"n_stream must be a power of 2 for kromhc, got 6"):
        KroneckerHyperConnections(stream_spec(), **{**KEYS, "n_stream": 6})
