"""Autocast is left for the stream and entered again, as it was, for a sublayer."""

import pytest
import torch

from src.kernels.autocast import capture_autocast, suspend_autocast


@pytest.mark.parametrize("enabled", [True, False])
def test_a_captured_autocast_is_the_callers_and_a_suspended_one_is_none(enabled: bool) -> None:
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        captured = capture_autocast(x)
        with suspend_autocast(x):
            assert (x @ x).dtype == torch.float32
            for _ in range(2):  # each call makes a context of its own
                with captured():
                    assert (x @ x).dtype == (torch.bfloat16 if enabled else torch.float32)
