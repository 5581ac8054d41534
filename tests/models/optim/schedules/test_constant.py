"""schedule=constant."""

from src.models.optim.schedules.constant import Constant


def test_the_rate_is_the_peak_after_the_warm_up() -> None:
    schedule = Constant(peak=0.5, floor=0.1, warmup_steps=2, max_steps=6)
    assert [schedule.lr(s) for s in range(6)] == [0.25, 0.5, 0.5, 0.5, 0.5, 0.5]
