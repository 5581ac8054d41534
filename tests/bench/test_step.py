"""The stopwatch: seconds of a step and of its parts."""

import torch

from src.bench.step import Stopwatch


def test_parts_of_one_name_add_up_and_make_the_step() -> None:
    watch = Stopwatch("cpu")
    watch.start()
    for part in ("forward", "backward", "forward"):
        torch.randn(300, 300) @ torch.randn(300, 300)
        watch(part)
    seconds, parts = watch.stop()
    assert list(parts) == ["forward", "backward"]
    assert 0 < parts["backward"] < parts["forward"] + parts["backward"] <= seconds + 1e-9
