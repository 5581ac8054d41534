"""schedule=linear against values computed by hand."""

import pytest

from src.models.optim.schedules.linear import Linear


def test_rates_fall_by_the_same_amount_each_step() -> None:
    schedule = Linear(peak=1.0, floor=0.2, warmup_steps=2, max_steps=7)
    assert [schedule.lr(s) for s in range(2)] == [0.5, 1.0]
    assert [schedule.lr(s) for s in range(2, 7)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], abs=1e-15)
    assert (schedule.lr(2), schedule.lr(6)) == (1.0, 0.2)
