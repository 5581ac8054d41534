"""Alternating timing: the rounds' ratios, the memory of a step, and groups that fail."""

import pytest
import torch
from torch import Tensor

from src.bench.candidates import BuiltCandidate
from src.bench.step import Lap, no_lap
from src.bench.timing import Timing, step_bytes, time_in_turns


def test_quartiles_are_those_of_the_rounds_ratios() -> None:
    rest = (1.0, 8, 6, 4, 2, 1, {})
    assert Timing([1.0] * 5, [1.0, 1.1, 1.2, 1.3, 9.0], *rest).quartiles() == (1.1, 1.2, 1.3)
    assert Timing([1.0], [1.5], *rest).quartiles() == (1.5, 1.5, 1.5)


def test_a_steps_memory_is_the_peak_of_its_tensors() -> None:
    def step(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
        first = torch.ones(1000, 1000)
        del first
        second = torch.ones(2000, 500)
        return second.add_(1) + torch.ones(1000, 500).sum()

    candidate = BuiltCandidate(step, 1, 1, 2, 0, 0, list)
    peak = step_bytes(candidate, torch.zeros(1, 2, dtype=torch.long), "cpu")
    assert 8_000_000 <= peak < 8_001_000


class Steps:
    """Candidates that record the order in which they are built and stepped."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.n_built = 0

    def build(self, name: str, block_size: int = 4) -> BuiltCandidate:
        self.n_built += 1

        def step(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
            if name == "broken":
                raise RuntimeError("out of memory")
            self.order.append(name)
            lap("all")
            return torch.zeros(())

        return BuiltCandidate(step, 2, block_size, 8, 0, 0, list)


def test_every_candidate_takes_one_step_per_round() -> None:
    steps = Steps()
    builders = {name: lambda name=name: steps.build(name) for name in "abc"}  # type: ignore[misc]
    timings = time_in_turns(builders, device="cpu", rounds=4, at_once=5, seed=0)
    assert list(timings) == ["a", "b", "c"]
    rounds = [steps.order[i : i + 3] for i in range(0, len(steps.order), 3)]
    assert len(rounds) == 2 + 4
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds[2:]}) > 1  # the order is shuffled anew every round
    assert timings["a"].ratios == [1.0] * 4


def test_the_baseline_is_built_once_and_stays_beside_every_group() -> None:
    steps = Steps()
    builders = {name: lambda name=name: steps.build(name) for name in "abc"}  # type: ignore[misc]
    time_in_turns(builders, device="cpu", rounds=1, at_once=1, seed=0)
    assert steps.n_built == 3
    assert steps.order.count("a") == 2 * steps.order.count("b")


def test_the_member_that_fails_alone_is_reported_and_the_others_are_timed() -> None:
    steps, failed = Steps(), {}
    builders = {name: lambda name=name: steps.build(name) for name in ("a", "broken", "c")}  # type: ignore[misc]
    timings = time_in_turns(builders, device="cpu", rounds=1, at_once=2, seed=0, failed=failed)
    assert list(timings) == ["a", "c"]
    assert failed == {"broken": "out of memory"}
    with pytest.raises(RuntimeError, match="out of memory"):
        time_in_turns(builders, device="cpu", rounds=1, at_once=2, seed=0)
