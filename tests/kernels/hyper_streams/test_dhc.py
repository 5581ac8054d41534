"""The read of DHC: every backend equals the reference in value and gradient."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from src.kernels.dispatch import REGISTRY
from src.kernels.hyper_streams import DHCParameters, Streams, dhc, read, read_dhc, reference

D = 32


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def parameters(n: int, width: int = D, dtype: torch.dtype = torch.float64) -> DHCParameters:
    shapes = ((width, n + 2), (width,), (width,), (2,), (n, n + 1), (n,))
    drawn = [0.4 * draw(*shape, seed=30 + k) for k, shape in enumerate(shapes)]
    drawn[1] += 1
    return DHCParameters(*(x.to(dtype).requires_grad_() for x in drawn))


def inputs(n: int, dtype: torch.dtype = torch.float64, width: int = D) -> list[Tensor]:
    """Streams, B of the last site and its output, which is to be written."""
    shapes = ((2, 19, n, width), (2, 19, n), (2, 19, width))
    return [draw(*shape, dtype=dtype, seed=40 + k).requires_grad_() for k, shape in enumerate(shapes)]


def need_kernel(n: int, dtype: torch.dtype) -> None:
    if dhc.SOURCE.why_not(torch.device("cpu"), dtype, width=D, N=n) is not None:
        pytest.skip("no C++ compiler")


def run(read: Any, state: list[Tensor], weights: DHCParameters, pending: bool) -> list[Tensor]:
    """Return the results of a read and all gradients of a random function of them."""
    h, b, y = state
    u, after = read(Streams(h, b, y if pending else None), weights)
    out = (u, after.h_BTND, after.b)
    total = sum((x * draw(*x.shape, dtype=x.dtype, seed=k)).sum() for k, x in enumerate(out))
    return [*out, *torch.autograd.grad(total, [h, *weights, *((b, y) if pending else ())])]


def read_reference(state: Streams, weights: DHCParameters) -> tuple[Tensor, Streams]:
    return read(state, lambda h: reference.dhc_weights(h, *weights))


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_every_backend_equals_the_reference(
    n: int, pending: bool, backend: str, dtype: torch.dtype, atol: float
) -> None:
    if backend == "cpp":
        need_kernel(n, dtype)
    choose = REGISTRY.without_residual_kernels if backend == "reference" else contextlib.nullcontext
    weights = parameters(n, dtype=dtype)
    with choose():
        ours = run(read_dhc, inputs(n, dtype), weights, pending)
    for one, other in zip(ours, run(read_reference, inputs(n, dtype), weights, pending), strict=True):
        assert torch.allclose(one, other, rtol=atol, atol=atol * one.abs().max().item())


def test_the_kernel_gets_its_dtype_from_a_backward_inside_autocast() -> None:
    need_kernel(4, torch.float32)
    found = []
    for inside in (False, True):
        state, weights = inputs(4, torch.float32), parameters(4, dtype=torch.float32)
        u, _ = read_dhc(Streams(*state), weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad((u * draw(*u.shape, dtype=u.dtype)).sum(), state))
    for outside, within in zip(*found, strict=True):
        assert torch.equal(outside, within)


def test_the_kernel_is_selected_for_whole_vectors_and_shown_in_the_table() -> None:
    need_kernel(2, torch.float32)
    for width, backend in ((D, "cpp"), (D - 4, "reference")):
        h, b, y = inputs(2, torch.float32, width)
        u, _ = read_dhc(Streams(h, b, y), parameters(2, width, torch.float32))
        assert type(u.grad_fn).__name__ == {"cpp": "_CppReadBackward", "reference": "_ReadBackward"}[backend]
        rows = [row for row in REGISTRY.table().splitlines() if f"width {width}, n_stream 2" in row]
        assert any(row.startswith("read of DHC") and backend in row for row in rows)


def test_the_gradients_of_the_kernel_are_its_derivatives() -> None:
    need_kernel(2, torch.float64)
    state = [draw(1, 2, *shape).requires_grad_() for shape in ((2, 8), (2,), (8,))]

    def run_kernel(h: Tensor, b: Tensor, y: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        u, after = read_dhc(Streams(h, b, y), DHCParameters(*weights))
        return u, after.h_BTND, after.b

    assert torch.autograd.gradcheck(run_kernel, [*state, *parameters(2, 8)])


def test_the_folded_norm_equals_a_layer_norm() -> None:
    h, weights = inputs(4)[0], parameters(4)
    for ours, theirs in zip(dhc.dhc_weights(h, weights), reference.dhc_weights(h, *weights), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
