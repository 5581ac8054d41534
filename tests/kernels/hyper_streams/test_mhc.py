"""The read of mHC: every backend equals the reference in value and gradient.

Covers `projection.py` too.
"""

import contextlib
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from src.kernels.dispatch import REGISTRY
from src.kernels.hyper_streams import MHCParameters, Streams, mhc, read, read_mhc, reference
from tests.kernels.hyper_streams.test_dhc import D, draw, inputs, run

KEYS: dict[str, Any] = {"n_iteration": 20, "eps": 1e-6}


def parameters(n: int, dtype: torch.dtype = torch.float64, width: int = D) -> MHCParameters:
    columns = n * (n + 2)
    shapes = ((columns, n * width), (3,), (columns,))
    drawn = [0.4 * draw(*shape, seed=50 + k) for k, shape in enumerate(shapes)]
    return MHCParameters(*(x.to(dtype).requires_grad_() for x in drawn))


def read_reference(state: Streams, weights: MHCParameters) -> tuple[Tensor, Streams]:
    return read(state, lambda h: reference.mhc_weights(h, *weights, **KEYS))


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_every_backend_equals_the_reference(
    n: int, pending: bool, backend: str, dtype: torch.dtype, atol: float
) -> None:
    if backend == "cpp" and mhc.SOURCE.why_not(torch.device("cpu"), dtype, width=D, N=n) is not None:
        pytest.skip("no C++ compiler")
    choose = REGISTRY.without_residual_kernels if backend == "reference" else contextlib.nullcontext
    weights = parameters(n, dtype)
    with choose():
        ours = run(partial(read_mhc, **KEYS), inputs(n, dtype), weights, pending)
    for one, other in zip(ours, run(read_reference, inputs(n, dtype), weights, pending), strict=True):
        assert torch.allclose(one, other, rtol=atol, atol=atol * one.abs().max().item())


def test_logits_below_the_floor_do_not_matter() -> None:
    weights = MHCParameters(*(x.detach() for x in parameters(4)))
    weights.bias_C[8:] = 60 * torch.eye(4, dtype=torch.float64).flatten()
    h = inputs(4)[0].detach()
    for ours, theirs in zip(
        mhc.mhc_weights(h, weights, **KEYS), reference.mhc_weights(h, *weights, **KEYS), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [80.0, 200.0])
def test_the_reference_is_finite_at_extreme_logits(size: float) -> None:
    """Rows of (size, -size): the second column is far below the largest logit, and still sums to 1."""
    bias = torch.tensor([0.0, 0, 0, 0, size, -size, size, -size])
    found = reference.mhc_weights(torch.ones(1, 1, 2, 4), torch.zeros(8, 8), torch.ones(3), bias, **KEYS)
    assert torch.allclose(found.a[..., 1:], torch.full((1, 1, 2, 2), 0.5))
