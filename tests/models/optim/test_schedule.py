"""The contract of schedules, over every shipped option, and the torch scheduler that applies one."""

import inspect
import io
from typing import Any

import pytest
import torch
from torch import nn

from src.models.optim.base import set_lr
from src.models.optim.schedule import Schedule, ScheduledLR
from src.models.optim.schedules.cosine import Cosine
from tests.support import class_of, component, option, options

SCHEDULES = options("schedule")


def schedule(name: str, warmup_steps: int = 3, max_steps: int = 40) -> Schedule:
    """A shipped schedule from 0.5 to 0.05."""
    found: Schedule = component("schedule", name)(0.5, 0.05, warmup_steps, max_steps)
    return found


def optimizer() -> torch.optim.Optimizer:
    """SGD with two groups, one at a third of the rate."""
    groups: list[dict[str, Any]] = [
        {"params": [nn.Parameter(torch.ones(2))], "lr_scale": scale} for scale in (1.0, 1 / 3)
    ]
    return torch.optim.SGD(groups, lr=0.5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_yaml_holds_exactly_the_constructors_own_keys(name: str) -> None:
    found = option("schedule", name)
    parameters = inspect.signature(class_of(found)).parameters.values()
    own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {str(key) for key in found if not str(key).startswith("_")} == own


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_linearly_to_its_peak(name: str) -> None:
    assert [schedule(name, warmup_steps=4).lr(s) for s in range(4)] == [0.5 * s / 4 for s in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_stay_between_floor_and_peak_and_never_rise_after_the_warm_up(name: str) -> None:
    rates = [schedule(name).lr(s) for s in range(2, 60)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.5
    assert rates[37] in (0.5 if name == "constant" else 0.05,)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(name: str, max_steps: int) -> None:
    rate = schedule(name, warmup_steps=0, max_steps=max_steps).lr(max_steps - 1)
    assert rate == (0.5 if name == "constant" else 0.05)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_as_long_as_the_run_is_an_error(name: str) -> None:
    for n in (20, 50):
        with pytest.raises(ValueError, match=rf"warmup_steps must be less than trainer.max_steps=20, got {n}"):
            schedule(name, warmup_steps=n, max_steps=20)


# ---- the torch scheduler


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_scheduler_sets_the_schedules_rate_times_each_groups_scale(name: str) -> None:
    ours, theirs = optimizer(), optimizer()
    scheduler = ScheduledLR(ours, schedule(name))
    for step in range(40):
        set_lr(theirs, schedule(name).lr(step))
        scheduler.follow(step)
        rates = [group["lr"] for group in theirs.param_groups]
        assert [group["lr"] for group in ours.param_groups] == rates == scheduler.get_last_lr()


def test_stepping_as_torch_does_gives_the_same_rates_as_following() -> None:
    ours = optimizer()
    scheduler, plan = ScheduledLR(ours, schedule("cosine")), schedule("cosine")
    for step in range(40):
        assert [group["lr"] for group in ours.param_groups] == [plan.lr(step), plan.lr(step) * (1 / 3)]
        ours.step()
        scheduler.step()


def test_a_stored_scheduler_resumes_at_its_step_even_under_a_longer_run() -> None:
    first = ScheduledLR(optimizer(), schedule("cosine"))
    first.follow(17)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    longer = Cosine(0.5, 0.05, 3, 80)
    resumed = ScheduledLR(optimizer(), longer)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.get_last_lr() == [longer.lr(17), longer.lr(17) * (1 / 3)]
