"""SeeDNorm beside the source's module."""

import torch
from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_contract import EPS, built, inputs
from tests.oracle import LR, WEIGHT_DECAY, compare_module, groups_by_name
from tests.support import component, tiny_gpt


def test_it_equals_its_source() -> None:
    """swiss-ai/Megatron-LM @ 5fbc124, megatron/core/transformer/torch_norm.py, with its activation tanh."""
    norm = built("seednorm").double()

    def oracle(x: Tensor) -> Tensor:
        rescale = torch.tanh(torch.einsum("btd,d->bt", x, norm.beta))
        x_norm = x / torch.sqrt((x**2).mean(-1, keepdim=True) + EPS)
        return (rescale[..., None] * norm.alpha + norm.weight) * x_norm

    compare_module(norm, inputs(), oracle)


def test_it_starts_as_rmsnorm_and_alpha_and_beta_decay() -> None:
    """There alpha is 1, beta 0, gamma 1; `apply_weight_decay` is set on alpha and beta and not on gamma."""
    norm = component("norm", "seednorm")(NormSpec(8, bias=True)).double()
    values = {name: p.tolist() for name, p in norm.named_parameters()}
    assert values == {"weight": [1.0] * 8, "alpha": [1.0] * 8, "beta": [0.0] * 8}
    plain = component("norm", "rmsnorm")(NormSpec(8, bias=False)).double()
    assert torch.allclose(norm(inputs()), plain(inputs()), rtol=0, atol=1e-12)
    groups = groups_by_name(tiny_gpt(norm="seednorm"))
    for place in ("h.0.ln_1", "h.2.ln_2", "ln_f"):
        assert groups[f"{place}.alpha"] == groups[f"{place}.beta"] == (LR, WEIGHT_DECAY)
        assert groups[f"{place}.weight"] == (LR, 0.0)
