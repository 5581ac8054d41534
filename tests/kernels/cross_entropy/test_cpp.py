"""The C++ kernel of the linear cross-entropy equals the reference in value and gradient; when it is rejected."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.cross_entropy import chunked, cpp, linear_cross_entropy, token_losses
from src.kernels.cross_entropy.cpp import ROWS, TILE
from src.kernels.dispatch import REGISTRY

D = 16
SIZES = [(1, 7), (5, 2 * TILE), (ROWS, 3 * TILE + 1), (ROWS + 1, 65), (2 * ROWS + 37, 40)]


def inputs(n: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, D, generator=generator, dtype=dtype, requires_grad=True)
    w = torch.randn(vocab_size, D, generator=generator, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(vocab_size, (n,), generator=generator)


def plain(x: Tensor, w: Tensor, target: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(x @ w.T, target, reduction="none")
    return [loss.detach(), *torch.autograd.grad(loss.mean(), (x, w))]


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def select(dtype: torch.dtype) -> str:
    return chunked.OPERATION.backend_for(torch.ones(1, D), width=D, products=dtype)


def need_kernel(dtype: torch.dtype) -> None:
    if select(dtype) != "cpp":
        pytest.skip(f"no kernel for {dtype} here: there is no C++ compiler, or torch has no such product")


def off(ours: Tensor | None, theirs: Tensor) -> float:
    assert ours is not None
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("n_thread", [1, 3])
@pytest.mark.parametrize(("n", "vocab_size"), SIZES)
def test_its_algorithm_is_exact_in_float64(n: int, vocab_size: int, n_thread: int, threads: Any) -> None:
    if cpp.SOURCE.why_not(torch.device("cpu"), torch.float64, width=D) is not None:
        pytest.skip("no C++ compiler")
    kernels = cpp.SOURCE.load(torch.float64, D)
    threads(n_thread)
    x, w, target = inputs(n, vocab_size, torch.float64)
    own_product = kernels, "head_same", (0, 0)  # torch has no product of small blocks in float64
    loss_and_gradients = cpp._compute_losses(*own_product, x.detach(), w.detach(), target, True, True)
    quiet = cpp._compute_losses(*own_product, x.detach(), w.detach(), target, False, False)
    assert torch.equal(quiet[0], loss_and_gradients[0])
    for ours, theirs in zip(loss_and_gradients, plain(x, w, target), strict=True):
        assert off(ours, theirs) < 1e-13


@pytest.mark.parametrize("n_thread", [1, 2])
@pytest.mark.parametrize(("n", "vocab_size"), SIZES)
def test_in_float32_it_equals_the_reference_to_rounding(n: int, vocab_size: int, n_thread: int, threads: Any) -> None:
    need_kernel(torch.float32)
    threads(n_thread)
    x, w, target = inputs(n, vocab_size, torch.float32)
    loss, each = linear_cross_entropy(x, w, target), token_losses(x, w, target)
    each_plain, dx, dw = plain(*(leaf.detach().double().requires_grad_() for leaf in (x, w)), target)
    assert off(each, each_plain) < 1e-6
    assert torch.equal(loss, each.mean())
    for ours, theirs in zip(torch.autograd.grad(3 * loss, (x, w)), (dx, dw), strict=True):
        assert off(ours / 3, theirs) < 4e-6


@pytest.mark.parametrize(("n", "vocab_size"), SIZES)
def test_under_bf16_only_the_factors_of_products_are_rounded(n: int, vocab_size: int) -> None:
    need_kernel(torch.bfloat16)
    x, w, target = inputs(n, vocab_size, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, w, target)
    rounded = [leaf.detach().bfloat16().double().requires_grad_() for leaf in (x, w)]
    each_plain, *gradients = plain(rounded[0], rounded[1], target)
    assert loss.item() == pytest.approx(each_plain.mean().item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, w)), gradients, strict=True):
        assert ours.dtype == torch.float32
        assert off(ours, theirs) < 4e-3  # the gradient by the logits has 8 digits of 2


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    need_kernel(torch.float32)
    x, w, target = inputs(5, 70, torch.float32)
    both = torch.autograd.grad(linear_cross_entropy(x, w, target), (x, w))
    alone = [
        torch.autograd.grad(linear_cross_entropy(a, b, target), c)[0]
        for a, b, c in ((x, w.detach(), x), (x.detach(), w, w))
    ]
    assert all(map(torch.equal, both, alone))


def test_extreme_logits_stay_finite_and_nan_stays_nan() -> None:
    need_kernel(torch.float32)
    x, w, target = inputs(40, 200, torch.float32)
    far = 1e4 * x.detach()
    assert torch.allclose(token_losses(far, w, target), F.cross_entropy(far @ w.T, target, reduction="none"), rtol=1e-5)
    for bad in (torch.nan, torch.inf):
        broken = x.detach().clone()
        broken[3, 1] = bad
        losses = token_losses(broken, w, target)
        assert losses[3].isnan()
        assert losses[torch.arange(40) != 3].isfinite().all()


def test_sums_that_cancel_over_a_large_vocabulary_are_as_exact_as_in_the_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_kernel(torch.float32)
    x, w, target = inputs(64, 50_000, torch.float32)
    alike = (1 + 0.01 * w.detach()).requires_grad_()  # as in a trained head: what all tokens share cancels in dx

    def found() -> list[Tensor]:
        return [
            token_losses(x, alike, target),
            *torch.autograd.grad(linear_cross_entropy(x, alike, target), (x, alike)),
        ]

    exact = plain(x.detach().double().requires_grad_(), alike.detach().double().requires_grad_(), target)
    ours = [off(one, true) for one, true in zip(found(), exact, strict=True)]
    monkeypatch.setattr(chunked.OPERATION, "backend_for", lambda *_, **__: "reference")
    fallback = [off(one, true) for one, true in zip(found(), exact, strict=True)]
    for one, other in zip(ours, fallback, strict=True):
        assert one < 3 * other


@pytest.mark.parametrize("target", [-1, 70])
def test_a_target_outside_the_vocabulary_raises_an_error(target: int) -> None:
    need_kernel(torch.float32)
    x, w, _ = inputs(1, 70, torch.float32)
    with pytest.raises(IndexError, match=f"between 0 and 69, got {target}"):
        token_losses(x, w, torch.tensor([target]))


def test_a_second_backward_returns_the_same_gradient() -> None:
    x, w, target = inputs(5, 70, torch.float32)
    loss = linear_cross_entropy(x, w, target)
    (once,) = torch.autograd.grad(loss, w, retain_graph=True)
    loss.backward(retain_graph=True)
    assert w.grad is not None
    w.grad.zero_()  # as clipping changes it
    loss.backward()
    assert torch.equal(w.grad, once)


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_the_fallback_runs_if_a_product_is_missing_or_wrong_and_the_log_says_why(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need_kernel(torch.float32)
    x, w, target = inputs(5, 70, torch.float32)
    theirs = plain(x, w, target)[0].mean()
    monkeypatch.setattr(REGISTRY, "decisions", {})
    monkeypatch.setattr(cpp, "load_kernel", cpp.load_kernel.__wrapped__)
    if fault == "missing":
        monkeypatch.setitem(cpp.PRODUCTS, torch.float32, "no_such_symbol")
    else:
        right = cpp._compute_losses

        def wrong(*args: Any) -> Any:
            loss, dx, dw = right(*args)
            return loss, dx, None if dw is None else 1.001 * dw

        monkeypatch.setattr(cpp, "_compute_losses", wrong)
    with caplog.at_level(logging.INFO):
        assert torch.allclose(linear_cross_entropy(x, w, target), theirs, rtol=1e-6)
    assert select(torch.float32) == "reference"
    (message,) = caplog.messages
    assert message.startswith("linear cross-entropy falls back to PyTorch on cpu (torch.float32): ")
    assert {"missing": "no_such_symbol", "wrong": "output 3 of case 0 is off by 1.0e-03"}[fault] in message
