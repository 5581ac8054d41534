"""Derf beside the source's patch of nanoGPT."""

import math

import pytest
import torch
from torch import Tensor

from src.norm.base import NormSpec
from tests.norm.test_contract import built, inputs
from tests.oracle import LR, compare_module, groups_by_name
from tests.support import component, tiny_gpt


@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_its_source(bias: bool) -> None:
    """zlab-princeton/Derf @ 8dd9ea3, language model/model_derf.patch, which has a bias whatever `config.bias` is."""
    norm = built("derf", bias=bias).double()

    def oracle(x: Tensor) -> Tensor:
        return norm.weight * torch.erf(norm.alpha * x + norm.shift) + norm.bias

    compare_module(norm, inputs(), oracle)
    alpha, shift = norm.alpha.item(), norm.shift.item()
    columns = zip(inputs()[0, 0].tolist(), norm.weight.tolist(), norm.bias.tolist(), strict=True)
    by_hand = [w * math.erf(alpha * v + shift) + b for v, w, b in columns]
    assert norm(inputs())[0, 0].tolist() == pytest.approx(by_hand)


def test_its_values_start_as_in_the_source_and_do_not_decay() -> None:
    """language model/train_derf.patch has alpha 1 for all norms; nanoGPT decays tensors of two dimensions only."""
    norm = component("norm", "derf")(NormSpec(8, bias=False))
    values = {name: p.tolist() for name, p in norm.named_parameters()}
    assert values == {"weight": [1.0] * 8, "bias": [0.0] * 8, "alpha": [1.0], "shift": [0.0]}
    groups = groups_by_name(tiny_gpt(norm="derf"))
    assert {groups[f"h.0.ln_1.{name}"] for name in values} == {(LR, 0.0)}
