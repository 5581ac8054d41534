"""The kernels in C++ against the plain form of what they compute, in value and gradient."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from src.kernels import cpp_build as native
from src.kernels.depth_attention import ops
from src.kernels.dispatch import REGISTRY
from src.kernels.hyper_streams import dhc as hyperconn_read
from src.kernels.hyper_streams.dhc import read_dynamic
from src.kernels.hyper_streams.reference import Streams
from src.residual import mhc
from src.residual.attnres import AttentionResiduals
from src.residual.hyperconn import HyperConnections
from src.residual.mhc import ManifoldHyperConnections
from tests.residual.plain import flow, jittered, stream_spec

D = 32
MHC_KEYS: dict[str, Any] = {
    "n_iteration": 20,
    "scale_init": 0.3,
    "own_share": 0.7,
    "res_logit": 8.0,
    "eps": 1e-6,
    "stream_dtype": "float32",
}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def needs_kernels(source: str, **sizes: int) -> None:
    if native.kernels_for(torch.ones(1, D), source, **sizes) is None:
        pytest.skip("no C++ compiler")


def hyperconn_site(n: int, dtype: torch.dtype) -> list[Tensor]:
    strategy = jittered(
        HyperConnections(
            stream_spec(1, D), n_stream=n, scale_init=0.3, output_init_scale=1.0, stream_dtype="float32"
        )
    )
    return [t.detach().to(dtype).requires_grad_() for t in strategy._site(1)]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("waits", [False, True])
def test_the_read_of_hyperconn(
    n: int, dtype: torch.dtype, atol: float, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_kernels("kernels/hyper_streams/dhc", N=n)
    results = []
    for plain in (True, False):
        if plain:
            monkeypatch.setattr(hyperconn_read, "kernels_for", lambda *a, **k: None)
        else:
            monkeypatch.undo()
        h, weights = random(2, 19, n, D, dtype=dtype).requires_grad_(), hyperconn_site(n, dtype)
        b, y = random(2, 19, n, dtype=dtype).requires_grad_(), random(2, 19, D, dtype=dtype).requires_grad_()
        state = Streams(h, b, y if waits else None)
        u, (mixed, b_next, *_) = read_dynamic(state, hyperconn_read.Weights(*weights))
        out = (u, mixed, b_next)
        total = sum((x * random(*x.shape, dtype=dtype, seed=i)).sum() for i, x in enumerate(out))
        grads: Any = torch.autograd.grad(total, [h, *weights, *((b, y) if waits else ())])
        results.append([*out, *grads])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=atol, atol=atol * one.abs().max().item())


def test_the_gradients_of_hyperconns_read_are_its_derivatives() -> None:
    needs_kernels("kernels/hyper_streams/dhc", N=2)
    strategy = jittered(
        HyperConnections(
            stream_spec(1, 8), n_stream=2, scale_init=0.3, output_init_scale=1.0, stream_dtype="float32"
        )
    )
    weights = [t.detach().requires_grad_() for t in strategy._site(1)]
    state = [random(1, 2, *shape).requires_grad_() for shape in ((2, 8), (2,), (8,))]

    def read(h: Tensor, b: Tensor, y: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        u, after = read_dynamic(Streams(h, b, y), hyperconn_read.Weights(*weights))
        return u, after.h_BTND, after.b

    assert torch.autograd.gradcheck(read, [*state, *weights])


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("waits", [False, True])
def test_the_read_of_mhc(
    n: int, dtype: torch.dtype, atol: float, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_kernels("kernels/hyper_streams/mhc", N=n)
    spec, site = stream_spec(1, D), stream_spec(1, D).sites[1]
    strategy = jittered(ManifoldHyperConnections(spec, **{**MHC_KEYS, "n_stream": n})).to(dtype)
    results = []
    for plain in (True, False):
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(mhc, "kernels_for", lambda *a, **k: None)
            h, b, y = (random(2, 19, *shape, dtype=dtype).requires_grad_() for shape in ((n, D), (n,), (D,)))
            u, (mixed, b_next, *_) = strategy.read(Streams(h, b, y if waits else None), site)
        out = (u, mixed, b_next)
        total = sum((x * random(*x.shape, dtype=dtype, seed=i)).sum() for i, x in enumerate(out))
        grads: Any = torch.autograd.grad(total, [h, *strategy.parameters(), *((b, y) if waits else ())])
        results.append([*out, *grads])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=atol, atol=atol * one.abs().max().item())


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gradients_of_depth_attention_equal_the_references(dtype: torch.dtype, atol: float) -> None:
    if ops.SOURCE.why_not(torch.device("cpu"), dtype, width=D) is not None:
        pytest.skip("no C++ compiler")
    spec = stream_spec(5, D)
    strategy = jittered(AttentionResiduals(spec, eps=1e-6)).to(dtype)
    weights = [random(D, D, seed=i, dtype=dtype).requires_grad_() for i in range(spec.n_site)]
    results = []
    for plain in (True, False):
        with REGISTRY.without_residual_kernels() if plain else contextlib.nullcontext():
            x0 = random(2, 19, D, dtype=dtype).requires_grad_()
            out = flow(strategy, spec, x0, [lambda x, w=w: torch.tanh(x @ w) for w in weights])
        early = torch.autograd.grad(out.sum(), weights[-2:], retain_graph=True)  # must not change the next
        total = (out * random(*out.shape, dtype=dtype, seed=3)).sum()
        results.append([out, *early, *torch.autograd.grad(total, [x0, *weights, *strategy.parameters()])])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=atol, atol=atol * one.abs().max().item())
