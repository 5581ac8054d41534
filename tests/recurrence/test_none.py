"""No recurrence."""

import torch

from src.recurrence.base import RecurrenceSpec
from src.recurrence.none import NoRecurrence
from src.residual.base import sites_in_order, sites_of
from tests.support import tiny_gpt, tokens


def test_every_layer_is_visited_once_in_order() -> None:
    visits = NoRecurrence(RecurrenceSpec(4)).visits()
    assert sites_of((visit.layer, visit.kinds) for visit in visits) == sites_in_order(4)


def test_nothing_begins_later() -> None:
    gpt = tiny_gpt()
    before = gpt(tokens())
    gpt.follow(99, 100)
    assert torch.equal(gpt(tokens()), before)
    assert not NoRecurrence(RecurrenceSpec(4)).delayed
