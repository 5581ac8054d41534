"""The chunked loss against the plain one: value, gradient, memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from src.models import loss as loss_module
from src.models.loss import linear_cross_entropy, token_losses
from tests.support import jitter, tiny_gpt, tokens


def plain_loss(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(x @ w.T, target)


def inputs(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=generator, dtype=dtype, requires_grad=True)
    w = torch.randn(40, 8, generator=generator, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(40, (n,), generator=generator)


@pytest.mark.parametrize("n", [1, 5, 256, 257, 700])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_chunked_loss_is_the_plain_one_in_value_and_gradient(
    n: int, dtype: torch.dtype, tolerance: float
) -> None:
    x, w, target = inputs(n, dtype)
    ours, plain = linear_cross_entropy(x, w, target), plain_loss(x, w, target)
    assert torch.allclose(ours, plain, rtol=tolerance, atol=tolerance)
    for a, b in zip(torch.autograd.grad(3 * ours, (x, w)), torch.autograd.grad(3 * plain, (x, w)), strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_its_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 2)
    x, w, target = inputs(5, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: linear_cross_entropy(a, b, target), (x, w))


def test_extreme_logits_stay_finite() -> None:
    x, w, target = inputs(5, torch.float32)
    ours = linear_cross_entropy(1e4 * x, w, target)
    assert torch.allclose(ours, plain_loss(1e4 * x, w, target), rtol=1e-5)


def test_under_bf16_it_is_close_and_its_gradients_are_float32() -> None:
    x, w, target = inputs(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(x, w, target)
    dx, dw = torch.autograd.grad(ours, (x, w))
    assert dx.dtype == dw.dtype == torch.float32
    plain = plain_loss(x, w, target)
    assert ours.item() == pytest.approx(plain.item(), rel=2e-2)
    for a, b in zip((dx, dw), torch.autograd.grad(plain, (x, w)), strict=True):
        assert (a - b).norm() < 2e-2 * b.norm()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_the_logits_of_a_batch_never_exist_at_once() -> None:
    gpt = tiny_gpt(vocab_size=2048, block_size=64)
    idx = tokens(32, 64, 2048)
    with Largest() as largest:
        gpt.loss(idx, idx).backward()
    assert largest.numel <= 256 * 2048 < idx.numel() * 2048 // 4


def test_token_losses_are_the_terms_of_the_loss() -> None:
    gpt, idx, target = jitter(tiny_gpt()), tokens(), tokens(seed=1)
    each = gpt.token_losses(idx, target)
    assert each.shape == (3, 12)
    plain = F.cross_entropy(gpt(idx).flatten(0, 1), target.flatten(), reduction="none")
    assert torch.allclose(each.flatten(), plain, atol=1e-5)
    assert each.mean().item() == pytest.approx(gpt.loss(idx, target).item(), rel=1e-6)
    x, w, t = inputs(300, torch.float64)
    assert torch.allclose(token_losses(x, w, t).mean(), linear_cross_entropy(x, w, t))
