"""ProRes: schedules by hand, and the stream."""

import pytest
import torch

from src.residual.prores import ProRes
from src.residual.prores_schedules import SCHEDULES
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers

KEYS = {
    "schedule": "linear",
    "warmup_fraction": 0.25,
    "warmup_steps": None,
    "scaled": "sublayer",
    "whole_in_eval": False,
}
IN_STEPS = {**KEYS, "warmup_fraction": None, "warmup_steps": 30}


def warmed(schedule: str, t: int, warmup: int) -> torch.Tensor:
    return SCHEDULES[schedule](t / warmup, torch.arange(1.0, 5.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("schedule", "t", "expected"),
    [
        ("linear", 0, [0, 0, 0, 0]),
        ("linear", 50, [0.5, 0.25, 1 / 6, 0.125]),
        ("linear", 200, [1, 1, 2 / 3, 0.5]),
        ("linear", 400, [1, 1, 1, 1]),
        ("linear_equal", 100, [0.25] * 4),
        ("linear_reverse", 50, [0.125, 1 / 6, 0.25, 0.5]),
        ("sqrt", 50, [0.5**0.5, 0.25**0.5, (1 / 6) ** 0.5, 0.125**0.5]),
        ("square", 50, [0.25, 0.0625, 1 / 36, 1 / 64]),
        ("stagewise_0", 150, [1, 0.5, 0, 0]),
        ("stagewise_L", 150, [1, 0.625, 0.25, 0.25]),
        ("stagewise_sqrt_L", 0, [0.5] * 4),
        ("stagewise_sqrt_l", 400, [1, 1, 1, 1]),
        ("fix_L", 400, [0.25] * 4),
        ("fix_sqrt_l", 7, [1, 0.5**0.5, (1 / 3) ** 0.5, 0.5]),
    ],
)
def test_the_schedules_by_hand(schedule: str, t: int, expected: list[float]) -> None:
    assert warmed(schedule, t, 400).tolist() == pytest.approx(expected)


def test_all_but_the_constants_end_at_one_and_never_fall() -> None:
    for schedule in SCHEDULES:
        table = torch.stack([warmed(schedule, t, 40) for t in range(42)])
        assert (table.diff(dim=0) >= -1e-12).all()
        assert schedule.startswith("fix") or torch.equal(table[40:], torch.ones(2, 4, dtype=torch.float64))


def test_both_sublayers_are_scaled_by_the_layers_factor() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProRes(spec, **IN_STEPS).double()
    strategy.on_step(10, 1000)
    x = x0
    for k, branch in enumerate(branches):
        x = x + min(10 / (10 * (k // 2 + 1)), 1) * branch(x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-7)


def test_the_warm_up_is_a_part_of_the_run_and_no_step_recompiles() -> None:
    strategy = ProRes(stream_spec(4), **KEYS)
    strategy.on_step(25, 400)
    assert strategy.alpha_L.tolist() == pytest.approx([1, 0.5, 1 / 3, 0.25])
    assert "alpha_L" not in strategy.state_dict()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    spec = stream_spec(4)
    step = torch.compile(
        lambda x: strategy.write(strategy.begin(x), spec.sites[2], x), backend=count, fullgraph=True
    )
    for t in range(6):
        strategy.on_step(t, 400)
        assert step(torch.ones(1)).outer_BTD[0] == pytest.approx(1 + t / 50)
    assert len(graphs) == 1


def test_the_benchmarks_form_scales_what_leaves_a_layer_and_nothing_in_evaluation() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProRes(spec, **{**IN_STEPS, "scaled": "block", "whole_in_eval": True}).double()
    strategy.on_step(10, 1000)
    for factor in (lambda i: min(10 / (10 * (i + 1)), 1), lambda i: 1.0):
        x = x0
        for i in range(3):
            h = x + branches[2 * i](x)
            x = x + factor(i) * (h + branches[2 * i + 1](h) - x)
        assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-7)
        strategy.eval()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"schedule": "cubic"}, "residual.schedule must be one of linear"),
        ({"scaled": "half"}, "residual.scaled must be sublayer or block"),
        ({"warmup_fraction": 0.0}, "residual.warmup_fraction must be positive"),
        ({"warmup_steps": 5}, "exactly one of residual.warmup_fraction and residual.warmup_steps"),
    ],
)
def test_what_no_schedule_can_mean_is_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ProRes(stream_spec(), **{**KEYS, **keys})
