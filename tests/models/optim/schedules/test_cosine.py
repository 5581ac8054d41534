"""schedule=cosine against values computed by hand."""

import pytest

from src.models.optim.schedules.cosine import Cosine


def test_rates_warm_up_and_end_exactly_at_the_floor() -> None:
    schedule = Cosine(peak=1.0, floor=0.1, warmup_steps=4, max_steps=11)
    assert [schedule.lr(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.lr(4) == 1.0
    assert schedule.lr(7) == pytest.approx(0.1 + 0.9 * 0.5, abs=1e-12)
    assert schedule.lr(10) == 0.1


def test_rates_fall_after_the_warm_up_and_stay_above_the_floor() -> None:
    schedule = Cosine(peak=3e-4, floor=3e-5, warmup_steps=541, max_steps=13535)
    rates = [schedule.lr(s) for s in range(541, 13535)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 3e-5
