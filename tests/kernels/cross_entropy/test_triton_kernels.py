"""The Triton kernel of the cross-entropy equals the reference, in Triton's interpreter.

The interpreter truncates float32 to bfloat16 where a device rounds, hence a tolerance of two of its last digits.
"""

import math
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from src.kernels.cross_entropy import chunked, linear_cross_entropy, token_losses, triton_launch
from src.kernels.dispatch import REGISTRY
from tests.interpreter import interpreted
from tests.kernels.cross_entropy.test_chunked import inputs

KERNELS = "src.kernels.cross_entropy.triton_kernels"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = interpreted(KERNELS)
    monkeypatch.setattr(module, "TILE", 16)  # rows of several tiles, the last not full
    return module


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_a_row_becomes_its_loss_and_its_gradient(
    kernels: ModuleType, dtype: torch.dtype, tolerance: float, softcap: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(5, 71, generator=generator)).to(dtype)
    target = torch.tensor([0, 70, 15, 16, 40])
    leaf = logits.double().requires_grad_()
    plain = F.cross_entropy(leaf if softcap is None else softcap * (leaf / softcap).tanh(), target, reduction="none")
    before = logits.clone()
    keys = {"softcap": softcap}
    assert torch.allclose(kernels.losses_(logits, target, gradient=False, **keys).double(), plain, rtol=1e-6)
    assert torch.equal(logits, before)
    assert torch.allclose(kernels.losses_(logits, target, gradient=True, **keys).double(), plain, rtol=1e-6)
    wanted = torch.autograd.grad(plain.sum(), leaf)[0]
    assert torch.allclose(logits.double(), wanted, rtol=5 * tolerance if softcap else tolerance, atol=1e-7)


def test_extreme_logits_stay_finite_and_nan_stays_nan(kernels: ModuleType) -> None:
    logits = torch.zeros(2, 40)
    logits[0, 3], logits[0, 30], logits[1, 20] = 3e4, -3e4, math.nan
    found = kernels.losses_(logits, torch.tensor([30, 0]), gradient=True)
    assert found[0] == 6e4
    assert found[1].isnan()
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()  # the guard looks for it


@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_by_the_kernel_equals_the_fallback(
    kernels: ModuleType, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 4)
    monkeypatch.setattr(chunked.OPERATION, "backend_for", lambda *_, **__: "reference")
    x, w, target = inputs(11, torch.float32)

    def all_of_it() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = linear_cross_entropy(x, w, target)
            return [loss, token_losses(x, w, target), *torch.autograd.grad(loss, (x, w))]

    plain = all_of_it()
    monkeypatch.setattr(chunked.OPERATION, "backend_for", lambda *_, **__: "triton")
    for ours, theirs in zip(all_of_it(), plain, strict=True):
        assert (ours - theirs).norm() <= (2**-7 if autocast else 1e-6) * theirs.norm()


def test_verification_accepts_the_kernel_and_rejects_a_wrong_one(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "TILE", 8192)
    case = (torch.device("cpu"), torch.float32)
    sizes = {"width": 16, "products": torch.float32}
    assert triton_launch.why_not(*case, **sizes) is None
    assert triton_launch.why_not(*case, **sizes, softcap=15.0) is None
    right = kernels.losses_
    for factor in (1.001, math.nan):
        monkeypatch.setattr(kernels, "losses_", lambda *args, f=factor, **keys: right(*args, **keys) * f)
        reason = triton_launch.why_not(*case, **sizes)
        assert reason is not None
        assert reason.startswith("output 0 of case 0 is off by ")


def test_verification_rejects_an_error_in_small_probabilities(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "TILE", 8192)
    right = kernels.losses_

    def lose_small(logits: torch.Tensor, target: torch.Tensor, *, gradient: bool, **keys: object) -> torch.Tensor:
        loss: torch.Tensor = right(logits, target, gradient=gradient, **keys)
        if gradient:
            logits.masked_fill_(logits.abs() < 5e-6, 0.0)  # far below the tolerance of the largest element
        return loss

    monkeypatch.setattr(kernels, "losses_", lose_small)
    reason = triton_launch.why_not(torch.device("cpu"), torch.float32, width=16, products=torch.float32)
    assert reason is not None
    assert reason.startswith("output 0 of case 0 is off by ")


def test_without_residual_kernels_the_loss_keeps_its_kernel() -> None:
    x = torch.ones(1, 16)
    case = {"width": 16, "products": torch.float32}
    before = chunked.OPERATION.backend_for(x, **case)
    with REGISTRY.without_residual_kernels():
        assert chunked.OPERATION.backend_for(x, **case) == before
