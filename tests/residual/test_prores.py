"""ProRes: schedules by hand, and the stream."""

import pytest
import torch

from src.residual.prores import SCHEDULES, ProRes, warmed
from tests.residual.plain import embedding_like, flow, stream_spec, sublayers


@pytest.mark.parametrize(
    ("schedule", "t", "expected"),
    [
        ("linear", 0, [0, 0, 0, 0]),
        ("linear", 50, [0.5, 0.25, 1 / 6, 0.125]),
        ("linear", 200, [1, 1, 2 / 3, 0.5]),
        ("linear", 400, [1, 1, 1, 1]),
        ("equal", 100, [0.25] * 4),
        ("reverse", 50, [0.125, 1 / 6, 0.25, 0.5]),
        ("sqrt", 50, [0.5**0.5, 0.25**0.5, (1 / 6) ** 0.5, 0.125**0.5]),
        ("square", 50, [0.25, 0.0625, 1 / 36, 1 / 64]),
        ("stagewise_0", 150, [1, 0.5, 0, 0]),
        ("stagewise_L", 150, [1, 0.625, 0.25, 0.25]),
        ("stagewise_sqrtL", 0, [0.5] * 4),
        ("stagewise_sqrtl", 400, [1, 1, 1, 1]),
        ("fix_L", 400, [0.25] * 4),
        ("fix_sqrtl", 7, [1, 0.5**0.5, (1 / 3) ** 0.5, 0.5]),
    ],
)
def test_the_schedules_by_hand(schedule: str, t: int, expected: list[float]) -> None:
    assert warmed(schedule, t, 400, 4).tolist() == pytest.approx(expected)


def test_all_but_the_constants_end_at_one_and_never_fall() -> None:
    for schedule in SCHEDULES:
        table = torch.stack([warmed(schedule, t, 40, 4) for t in range(42)])
        assert (table.diff(dim=0) >= -1e-12).all()
        assert schedule.startswith("fix") or torch.equal(table[40:], torch.ones(2, 4, dtype=torch.float64))


def test_both_sublayers_are_scaled_by_the_layers_factor() -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = ProRes(spec, schedule="linear", warmup_fraction=0.24, warmup_steps=30).double()
    strategy.on_step(10, 1000)
    x = x0
    for k, branch in enumerate(branches):
        x = x + min(10 / (10 * (k // 2 + 1)), 1) * branch(x)
    assert torch.allclose(flow(strategy, spec, x0, branches), x, rtol=0, atol=1e-7)


def test_the_warm_up_is_a_part_of_the_run_and_no_step_recompiles() -> None:
    strategy = ProRes(stream_spec(4), schedule="linear", warmup_fraction=0.25, warmup_steps=None)
    strategy.on_step(25, 400)
    assert strategy.alpha_L.tolist() == pytest.approx([1, 0.5, 1 / 3, 0.25])
    assert "alpha_L" not in strategy.state_dict()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    spec = stream_spec(4)
    step = torch.compile(lambda x: strategy.write(x, spec.sites[2], x), backend=count, fullgraph=True)
    for t in range(6):
        strategy.on_step(t, 400)
        assert step(torch.ones(1))[0] == pytest.approx(1 + t / 50)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"schedule": "cubic"}, "residual.schedule must be one of linear"),
        ({"warmup_fraction": 0.0}, r"residual.warmup_fraction must be in \(0, 1\]"),
        ({"warmup_steps": 0}, "residual.warmup_steps must be null or at least 1"),
    ],
)
def test_what_no_schedule_can_mean_is_refused(keys: dict[str, object], words: str) -> None:
    values = {"schedule": "linear", "warmup_fraction": 0.24, "warmup_steps": None, **keys}
    with pytest.raises(ValueError, match=words):
        ProRes(stream_spec(), **values)
