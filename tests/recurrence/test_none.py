"""Recurrence none: plain order of layers."""

import torch

from src.recurrence.base import RecurrenceSpec
from src.recurrence.none import NoRecurrence
from src.residual.base import build_plain_sites, build_sites
from tests.support import tiny_gpt, tokens


def test_every_layer_is_visited_once_in_order() -> None:
    visits = NoRecurrence(RecurrenceSpec(4)).visits()
    assert build_sites((visit.layer, visit.kinds) for visit in visits) == build_plain_sites(4)


def test_nothing_starts_later() -> None:
    gpt = tiny_gpt()
    before = gpt(tokens())
    gpt.follow(99, 100)
    assert torch.equal(gpt(tokens()), before)
    assert not NoRecurrence(RecurrenceSpec(4)).delayed
