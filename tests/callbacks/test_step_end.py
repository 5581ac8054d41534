"""Callbacks of a step act once, after its validation where one is due."""

from types import SimpleNamespace
from typing import Any

import pytest

from src.callbacks.step_end import StepEndCallback, validation_follows


def trainer(step: int, *, should_stop: bool = False, enable_validation: bool = True) -> Any:
    return SimpleNamespace(
        global_step=step, val_check_batch=3, should_stop=should_stop, enable_validation=enable_validation
    )


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (trainer(2), False),
        (trainer(3), True),
        (trainer(2, should_stop=True), True),
        (trainer(3, enable_validation=False), False),
    ],
)
def test_validation_follows_at_its_interval_and_before_an_early_stop(state: Any, expected: bool) -> None:
    assert validation_follows(state) is expected


def test_each_step_ends_once() -> None:
    ended: list[int] = []

    class Note(StepEndCallback):
        def on_step_end(self, trainer: Any, pl_module: Any) -> None:
            ended.append(trainer.global_step)

    module: Any = None
    for step in range(1, 5):
        Note().on_train_batch_end(trainer(step), module)
        if step == 3:
            assert ended == [1, 2]
            Note().on_validation_end(trainer(step), module)
    assert ended == [1, 2, 3, 4]
