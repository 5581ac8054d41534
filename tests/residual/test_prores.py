"""ProRes against its source and published values of its schedules."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from src.residual.families.warmup_schedules import SCHEDULES
from src.residual.prores import ProRes
from tests.oracle import compare_flow
from tests.residual.plain import Sublayers, embedding_like, flow, stream_spec, sublayers
from tests.support import tiny_gpt

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


def published_alphas(schedule: str, step: int, warmup: int, n_layer: int) -> Any:
    steps = np.linspace(warmup // n_layer, warmup, n_layer)  # until a layer's weight is 1
    layers = np.arange(1, n_layer + 1)
    if schedule.startswith("fix_"):
        fixed = {"fix_L": 1 / n_layer, "fix_sqrt_L": n_layer**-0.5, "fix_sqrt_l": layers**-0.5}
        return fixed[schedule] * np.ones(n_layer)
    if schedule.startswith("stagewise_"):
        least = {"0": 0.0, "L": 1 / n_layer, "sqrt_L": (1 / n_layer) ** 0.5, "sqrt_l": 1 / np.sqrt(layers)}
        m = least[schedule.removeprefix("stagewise_")] * np.ones(n_layer)
        begun = step - np.concatenate(([0], steps[:-1]))
        return np.clip(m + (1 - m) * begun / np.diff(steps, prepend=0), m, 1)
    steps = {"linear_equal": np.full(n_layer, warmup), "linear_reverse": steps[::-1]}.get(schedule, steps)
    power = {"sqrt": 0.5, "square": 2}.get(schedule, 1)
    return np.clip((step / steps) ** power, 0, 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", [0, 130, 300, 700])
@pytest.mark.parametrize("training", [True, False])
def test_it_equals_its_source(schedule: str, step: int, training: bool) -> None:
    """dandingsky/ProRes @ 5253e0d, torchrun_main.py (weights) and peft_pretraining/modeling_llama.py (`pre_prores`)."""
    spec = stream_spec(4)
    strategy = ProRes(spec, **{**KEYS, "schedule": schedule}).double().train(training)
    strategy.on_step(step, 1000)
    weights = published_alphas(schedule, step, 400, 4)

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        for layer in range(4):
            x = x + branches[2 * layer](x) * weights[layer]
            x = x + branches[2 * layer + 1](x) * weights[layer]
        return x

    compare_flow(strategy, spec, oracle)


def test_the_warm_up_is_that_of_its_source() -> None:
    """24,000 of 100,000 steps: scripts/run_1b.sh; no parameters, so the optimizer groups are the trunk's."""
    gpt = tiny_gpt("prores")
    gpt.follow(12_000, 100_000)
    assert gpt.residual.alpha_L.tolist() == pytest.approx([1, 3 / 4, 1 / 2])
    assert not list(gpt.residual.parameters())


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
