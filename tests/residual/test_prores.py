"""ProRes against published values of its schedules, and against its equation."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from src.residual.families.warmup_schedules import SCHEDULES
from src.residual.prores import ProRes
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers

KEYS: dict[str, Any] = {
    "schedule": "linear",
    "warmup_fraction": None,
    "warmup_steps": 400,
}


def alpha(schedule: str, step: int, **changes: Any) -> list[float]:
    strategy = ProRes(stream_spec(4), **{**KEYS, "schedule": schedule, **changes}).double()
    strategy.on_step(step, 1000)
    return strategy.alpha_L.tolist()


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [  # a warm-up of 400 steps over 4 layers: under `linear`, layer l = 1..4 is whole after 100 l
        ("linear", 0, [0, 0, 0, 0]),
        ("linear", 150, [1, 3 / 4, 1 / 2, 3 / 8]),
        ("linear_equal", 150, [3 / 8, 3 / 8, 3 / 8, 3 / 8]),
        ("linear_reverse", 150, [3 / 8, 1 / 2, 3 / 4, 1]),
        ("sqrt", 100, [1, (1 / 2) ** 0.5, (1 / 3) ** 0.5, 1 / 2]),
        ("square", 100, [1, 1 / 4, 1 / 9, 1 / 16]),
        ("stagewise_0", 150, [1, 1 / 2, 0, 0]),
        ("stagewise_L", 150, [1, 1 / 4 + 3 / 8, 1 / 4, 1 / 4]),
        ("stagewise_sqrt_L", 150, [1, 3 / 4, 1 / 2, 1 / 2]),
        ("stagewise_sqrt_l", 350, [1, 1, 1, 3 / 4]),
        ("stagewise_sqrt_l", 0, [1, 2**-0.5, 3**-0.5, 1 / 2]),
        ("fix_L", 150, [1 / 4] * 4),
        ("fix_sqrt_L", 999, [1 / 2] * 4),
        ("fix_sqrt_l", 0, [1, 2**-0.5, 3**-0.5, 1 / 2]),
    ],
)
def test_the_schedules_equal_the_published_ones(schedule: str, step: int, expected: list[float]) -> None:
    assert alpha(schedule, step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if not name.startswith("fix_")])
def test_every_schedule_grows_up_to_one(schedule: str) -> None:
    course = torch.tensor([alpha(schedule, step) for step in range(0, 480, 40)])
    assert (course.diff(dim=0) >= 0).all()
    assert course[-2:].eq(1).all()


def test_the_published_warm_up_in_steps_exceeds_a_shorter_run() -> None:
    strategy = ProRes(stream_spec(24), **{**KEYS, "warmup_steps": 24_000})
    strategy.on_step(13_535, 13_535)
    assert strategy.alpha_L[-1].item() == pytest.approx(0.564, abs=5e-4)
    assert (strategy.alpha_L == 1).sum() == 13


def test_a_fraction_scales_with_the_run() -> None:
    given = alpha("linear", 100, warmup_steps=None, warmup_fraction=0.25)
    assert given == pytest.approx([1, 0.8, 0.4 / 0.75, 0.4])


def test_before_any_step_all_weights_are_one_and_the_buffer_is_not_saved() -> None:
    strategy = ProRes(stream_spec(), **KEYS)
    assert strategy.alpha_L.eq(1).all()
    assert strategy.state_dict() == {}


def test_alpha_scales_each_output() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProRes(spec, **KEYS).double()
    strategy.on_step(150, 1000)
    x = x0
    for k, branch in enumerate(branches):
        x = x + strategy.alpha_L[k // 2] * branch(x)
    for mode in (strategy.train(), strategy.eval()):
        assert torch.allclose(flow(mode, spec, x0, branches), x, rtol=0, atol=1e-12)


def test_all_steps_use_one_compiled_graph() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProRes(spec, **KEYS).double()
    counter = CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(lambda x: flow(strategy, spec, x, branches), backend=counter, fullgraph=True)
    for step in range(0, 400, 80):
        strategy.on_step(step, 1000)
        assert torch.allclose(compiled(x0), flow(strategy, spec, x0, branches), rtol=0, atol=1e-12)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cubic"}, r"schedule must be one of linear, .*, got cubic"),
        ({"warmup_fraction": 0.2}, r"exactly one of .* must be null, got 0.2 and 400"),
        ({"warmup_steps": None}, r"exactly one of .* must be null, got None and None"),
        ({"warmup_steps": 0}, r"warmup_steps must be positive, got 0"),
    ],
)
def test_an_invalid_warm_up_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProRes(stream_spec(), **{**KEYS, **changes})
