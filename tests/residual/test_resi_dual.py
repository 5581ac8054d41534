"""ResiDual against its repository."""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.resi_dual import ResiDual
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """microsoft/ResiDual @ 4fd4dc5, resi_dual/resi_dual.py (decoder) and resi_dual_layers.py, with factors unlike 1."""
    spec = stream_spec()
    strategy = jittered(ResiDual(spec, alpha=0.7, scale=0.3))
    dec_alpha, dec_res_input_norm_scale = 0.7, 0.3

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        *layer_norms, layer_norm = [(norm.weight, norm.bias) for norm in strategy.norms]
        res = x * dec_res_input_norm_scale
        for sublayer, (weight, bias) in zip(branches, layer_norms, strict=True):
            xr = x
            x = sublayer(x)
            res = res + x * dec_res_input_norm_scale
            x = F.layer_norm(x + xr, (6,), weight, bias)
        return x * dec_alpha + F.layer_norm(res, (6,), *layer_norm)

    compare_flow(strategy, spec, oracle)


def test_the_streams_are_not_normed_elsewhere_and_the_factors_are_the_sources() -> None:
    """microsoft/ResiDual @ 4fd4dc5, resi_dual/resi_dual.py: dec_alpha = dec_res_input_norm_scale = 1, one more norm."""
    gpt = tiny_gpt("resi_dual")
    assert (gpt.residual.alpha, gpt.residual.scale) == (1.0, 1.0)
    norms = {name: rate for name, rate in groups_by_name(gpt).items() if "norm" in name or "ln_" in name}
    assert norms == {f"residual.norms.{k}.weight": (LR, 0.0) for k in range(7)}
    assert all(torch.equal(norm.weight, torch.ones(16)) for norm in gpt.residual.norms)
