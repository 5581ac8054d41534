"""DyT beside the source's LLaMA, which has no bias."""

import pytest
import torch
from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_contract import built, inputs
from tests.oracle import LR, compare_module, groups_by_name
from tests.support import component, tiny_gpt


@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_its_source(bias: bool) -> None:
    """jiachenzhu/DyT @ aab5dde, other_tasks/LLaMA (no bias) and dynamic_tanh.py (bias)."""
    norm = built("dyt", bias=bias).double()

    def oracle(x: Tensor) -> Tensor:
        u = torch.exp(2 * norm.alpha * x)
        y = norm.weight * (u - 1) / (u + 1)
        return y + norm.bias if bias else y

    compare_module(norm, inputs(), oracle)


def test_its_values_start_as_in_the_source_and_do_not_decay() -> None:
    """fms_fsdp/config/training.py has attn, ffn and dec_alpha_init_value 1; fms_fsdp/models/llama.py has weight 1."""
    norm = component("norm", "dyt")(NormSpec(8, bias=False))
    assert {name: p.tolist() for name, p in norm.named_parameters()} == {"weight": [1.0] * 8, "alpha": [1.0]}
    groups = groups_by_name(tiny_gpt(norm="dyt"))
    assert groups["h.0.ln_1.alpha"] == groups["h.0.ln_1.weight"] == groups["ln_f.alpha"] == (LR, 0.0)


@pytest.mark.parametrize("name", ["dyt", "derf"])
def test_a_slope_that_is_not_positive_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"norm\.alpha_init must be > 0, got 0"):
        component("norm", name, alpha_init=0.0)(NormSpec(8, bias=False))
