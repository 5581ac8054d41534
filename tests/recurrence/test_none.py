"""Recurrence none: plain order of layers."""

import torch
from torch import Tensor

from src.models.gpt import GPT
from src.recurrence.base import RecurrenceSpec
from src.recurrence.none import NoRecurrence
from src.residual.base import build_plain_sites, build_sites
from tests.oracle import compare_model
from tests.support import jitter, tiny_gpt, tokens


def test_it_equals_its_source() -> None:
    """GPT-2 (Radford et al. 2019): one pass over the layers."""
    gpt = jitter(tiny_gpt()).double()

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        x: Tensor = gpt.embedding(idx)
        for block in gpt.h:
            x = x + block.attn(block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        return gpt.ln_f(x)

    compare_model(gpt, oracle)


def test_every_layer_is_visited_once_in_order() -> None:
    visits = NoRecurrence(RecurrenceSpec(4, 16, bias=False)).visits()
    assert build_sites((visit.layer, visit.kinds) for visit in visits) == build_plain_sites(4)


def test_nothing_starts_later() -> None:
    gpt = tiny_gpt()
    before = gpt(tokens())
    gpt.follow(99, 100)
    assert torch.equal(gpt(tokens()), before)
    assert not NoRecurrence(RecurrenceSpec(4, 16, bias=False)).delayed
