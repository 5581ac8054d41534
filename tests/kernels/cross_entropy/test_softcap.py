"""The soft cap in every path that makes logits or losses, against c tanh(l / c) written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.cross_entropy import ChunkLogits, cap_logits, chunked, cpp, linear_cross_entropy, reference
from src.kernels.cross_entropy.chunked import token_losses
from src.kernels.dispatch import REGISTRY
from tests.kernels.cross_entropy.test_chunked import inputs

CAP = 1.5  # logits of the inputs reach 9


def plain_losses(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    logits = CAP * torch.tanh(x @ w.T / CAP)
    return logits.logsumexp(-1) - logits.gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize("rows", [2, 256])
def test_loss_and_gradients_equal_the_formula_in_float64(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ROWS", rows)
    x, w, target = inputs(45, torch.float64)
    plain = plain_losses(x, w, target)
    wanted = torch.autograd.grad(3 * plain.mean(), (x, w))
    for compute in (linear_cross_entropy, reference.linear_cross_entropy):
        loss = compute(x, w, target, softcap=CAP)
        assert torch.allclose(loss, plain.mean(), rtol=0, atol=1e-13)
        for ours, theirs in zip(torch.autograd.grad(3 * loss, (x, w)), wanted, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)
    assert torch.allclose(token_losses(x, w, target, softcap=CAP), plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_float32_and_under_bf16_it_is_close_to_the_formula(autocast: bool) -> None:
    x, w, target = inputs(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = linear_cross_entropy(x, w, target, softcap=CAP)
    plain = plain_losses(x, w, target).mean()
    tolerance = 2e-2 if autocast else 1e-5
    assert loss.item() == pytest.approx(plain.item(), rel=tolerance)
    for ours, theirs in zip(*(torch.autograd.grad(value, (x, w)) for value in (loss, plain)), strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


def test_a_target_whose_probability_underflows_keeps_its_loss() -> None:
    x, w = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[900.0], [-900.0]])
    loss = linear_cross_entropy(x, w, torch.tensor([1]), softcap=500.0)
    assert loss.item() == pytest.approx(1000 * torch.tensor(1.8).tanh().item(), rel=1e-5)


def test_chunks_for_scoring_are_capped() -> None:
    x, w, _ = inputs(5, torch.float32)
    with torch.no_grad():
        assert torch.allclose(ChunkLogits(x, w, CAP)(x), CAP * torch.tanh(x @ w.T / CAP), atol=1e-6)
        assert torch.equal(cap_logits(x, None), x)
        assert cap_logits(x.bfloat16(), CAP).dtype == torch.float32


def test_the_cpp_kernel_has_no_cap_and_the_fallback_names_it() -> None:
    case = (torch.device("cpu"), torch.float32)
    sizes = {"width": 8, "products": torch.float32}
    assert cpp.why_not(*case, **sizes, softcap=CAP) == "it has no soft cap of the logits"  # type: ignore[arg-type]
    x, w, target = inputs(5, torch.float32)
    linear_cross_entropy(x, w, target, softcap=CAP)
    found = [d for d in REGISTRY.decisions.values() if ("softcap", CAP) in d.sizes]
    assert {d.backend for d in found} == {"reference"}


def test_a_cap_that_no_logit_reaches_changes_nothing() -> None:
    x, w, target = inputs(9, torch.float64)
    loss = linear_cross_entropy(x, w, target, softcap=1e9)
    assert torch.allclose(loss, F.cross_entropy(x @ w.T, target), rtol=0, atol=1e-12)
