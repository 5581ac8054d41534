"""The chunked linear cross-entropy equals the reference in value and gradient, and never has all logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.kernels.cross_entropy import chunked, linear_cross_entropy, reference, token_losses
from src.kernels.cross_entropy.chunked import CHUNK_ROWS
from tests.support import jitter, tiny_gpt, tokens


def inputs(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=generator, dtype=dtype, requires_grad=True)
    w = torch.randn(40, 8, generator=generator, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(40, (n,), generator=generator)


@pytest.mark.parametrize("n", [1, 5, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 188])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_chunked_loss_equals_the_reference_in_value_and_gradient(
    n: int, dtype: torch.dtype, tolerance: float
) -> None:
    x, w, target = inputs(n, dtype)
    ours, plain = linear_cross_entropy(x, w, target), reference.linear_cross_entropy(x, w, target)
    assert torch.allclose(ours, plain, rtol=tolerance, atol=tolerance)
    for a, b in zip(torch.autograd.grad(3 * ours, (x, w)), torch.autograd.grad(3 * plain, (x, w)), strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_its_gradient_equals_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 2)
    x, w, target = inputs(5, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: linear_cross_entropy(a, b, target), (x, w))


def test_extreme_logits_stay_finite() -> None:
    x, w, target = inputs(5, torch.float32)
    ours = linear_cross_entropy(1e4 * x, w, target)
    assert torch.allclose(ours, reference.linear_cross_entropy(1e4 * x, w, target), rtol=1e-5)


def test_under_bf16_it_is_close_to_the_reference_and_its_gradients_are_float32() -> None:
    x, w, target = inputs(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(x, w, target)
    dx, dw = torch.autograd.grad(ours, (x, w))
    assert dx.dtype == dw.dtype == torch.float32
    plain = reference.linear_cross_entropy(x, w, target)
    assert ours.item() == pytest.approx(plain.item(), rel=2e-2)
    for a, b in zip((dx, dw), torch.autograd.grad(plain, (x, w)), strict=True):
        assert (a - b).norm() < 2e-2 * b.norm()


class Watch(TorchDispatchMode):
    """Records the largest tensor that any operation returns, and every operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_the_watch_sees_the_logits_of_an_unchunked_cross_entropy() -> None:
    gpt, idx = tiny_gpt(vocab_size=2048, block_size=64), tokens(32, 64, 2048)
    with Watch() as watch:
        F.cross_entropy(gpt(idx).flatten(0, 1), idx.flatten()).backward()
    assert watch.numel == idx.numel() * 2048


@pytest.mark.parametrize("autocast", [False, True])
def test_the_logits_of_a_batch_never_exist_at_once(autocast: bool) -> None:
    gpt, idx = tiny_gpt(vocab_size=2048, block_size=64), tokens(32, 64, 2048)
    with Watch() as watch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        gpt.loss(idx, idx).backward()
        gpt.token_losses(idx, idx)
    assert watch.numel == CHUNK_ROWS * 2048 < idx.numel() * 2048 // 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_has_the_same_bits_and_one_product_a_chunk(mode: Any) -> None:
    x, w, target = inputs(2 * CHUNK_ROWS + 1, torch.float32)
    with mode(), Watch() as watch:
        quiet = linear_cross_entropy(x, w, target)
    assert sum(name in ("mm", "matmul") for name in watch.names) == 3  # by its mode
    assert torch.equal(quiet, linear_cross_entropy(x, w, target))


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    x, w, target = inputs(5, torch.float64)
    for wants_x, wants_w in ((True, False), (False, True)):
        a, b = x.detach().requires_grad_(wants_x), w.detach().requires_grad_(wants_w)
        linear_cross_entropy(a, b, target).backward()
        assert ((a.grad is None), (b.grad is None)) == (not wants_x, not wants_w)


def test_token_losses_are_the_terms_of_the_loss() -> None:
    gpt, idx, target = jitter(tiny_gpt()), tokens(), tokens(seed=1)
    each = gpt.token_losses(idx, target)
    assert each.shape == (3, 12)
    plain = F.cross_entropy(gpt(idx).flatten(0, 1), target.flatten(), reduction="none")
    assert torch.allclose(each.flatten(), plain, atol=1e-5)
    assert each.mean().item() == pytest.approx(gpt.loss(idx, target).item(), rel=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_mean_of_token_losses_equals_the_loss_to_rounding(autocast: bool) -> None:
    x, w, target = inputs(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        each = token_losses(x, w, target)
        assert torch.allclose(each.mean(), linear_cross_entropy(x, w, target), rtol=1e-6)
    assert each.dtype == torch.float32
