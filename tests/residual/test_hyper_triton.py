"""The kernels in Triton, by its interpreter on the CPU, against the plain form of what they compute."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from src.residual import hyperconn_read, replay, stream_operators, stream_trial
from src.residual.base import ResidualStrategy
from src.residual.hyperconn import HyperConnections
from tests.residual.plain import jittered, stream_spec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5}

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)


@pytest.fixture(autouse=True)
def _kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_operators, "DEVICES", (DEVICE,))
    monkeypatch.setattr(stream_trial, "ROWS", 2)


def outcome(
    strategy: ResidualStrategy[Any], n_site: int, shape: tuple[int, ...], y_type: torch.dtype, kernels: bool
) -> list[Tensor]:
    """The end, what sublayers are given, and the gradients of the embedding and all parameters."""
    dtype = next(strategy.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()
    state, given = strategy.begin(x0), []
    for site in stream_spec(n_site // 2).sites:
        u, state = strategy.read(state, site)
        assert (state.replay is not None) == kernels
        given.append(u.to(y_type).to(dtype))  # which rounds what the plain form does not
        state = strategy.write(state, site, torch.tanh(given[-1] * (1 + site.index)).to(y_type))
    end = strategy.end(state)
    total = sum(
        ((x * torch.randn(x.shape, generator=generator).to(DEVICE)).sum() for x in (end, *given)),
        start=torch.zeros((), device=DEVICE),
    )
    return [end, *given, *torch.autograd.grad(total, [x0, *strategy.parameters()])]


@pytest.mark.parametrize(
    ("n", "width", "dtype", "y_type"),
    [
        (4, 48, torch.float64, torch.float64),
        (3, 16, torch.float32, torch.float32),
        (2, 32, torch.float32, torch.bfloat16),
    ],
)
def test_hyperconn_replays_over_several_segments(
    n: int, width: int, dtype: torch.dtype, y_type: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(replay.SEGMENT, dtype, 2)
    results = []
    for kernels in (False, True):
        monkeypatch.setattr(hyperconn_read, "fits", stream_operators.fits if kernels else lambda *_: False)
        spec = stream_spec(3, width)
        strategy = jittered(HyperConnections(spec, n_stream=n, scale_init=0.3, output_init_scale=1.0)).to(
            DEVICE, dtype
        )
        results.append(outcome(strategy, 6, (1, 3, width), y_type, kernels))
    bound = TOLERANCE[dtype] if y_type == dtype else 0.02
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=bound, atol=bound * one.abs().max().item())
