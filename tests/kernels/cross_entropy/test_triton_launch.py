"""The loss's kernel, in Triton's interpreter, against the plain form; and when it is chosen.

The interpreter cuts float32 to bf16 where a device rounds: two of its last digits' worth of tolerance.
"""

import math
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from src.kernels import dispatch as gpu_kernels
from src.kernels.cross_entropy import triton_launch as loss_kernel
from src.models import loss as loss_module
from src.models.loss import linear_cross_entropy, token_losses
from tests.interpreter import interpreted
from tests.models.test_loss import inputs

KERNELS = "src.kernels.cross_entropy.triton_kernels"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = interpreted(KERNELS)
    monkeypatch.setattr(module, "BLOCK", 16)  # rows of several blocks, the last not full
    return module


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_a_row_becomes_its_loss_and_its_gradient(
    kernels: ModuleType, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(5, 71, generator=generator)).to(dtype)
    target = torch.tensor([0, 70, 15, 16, 40])
    leaf = logits.float().requires_grad_()
    plain = F.cross_entropy(leaf, target, reduction="none")
    before = logits.clone()
    assert torch.allclose(kernels.losses_(logits, target, gradient=False), plain, rtol=1e-6)
    assert torch.equal(logits, before)
    assert torch.allclose(kernels.losses_(logits, target, gradient=True), plain, rtol=1e-6)
    wanted = torch.autograd.grad(plain.sum(), leaf)[0]
    assert torch.allclose(logits.float(), wanted, rtol=tolerance, atol=1e-7)


def test_far_logits_and_nan_stay_what_they_are(kernels: ModuleType) -> None:
    logits = torch.zeros(2, 40)
    logits[0, 3], logits[0, 30], logits[1, 20] = 3e4, -3e4, math.nan
    found = kernels.losses_(logits, torch.tensor([30, 0]), gradient=True)
    assert found[0] == 6e4
    assert found[1].isnan()
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()  # the guard has to see it


@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_by_the_kernel_is_the_plain_one(
    kernels: ModuleType, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 4)
    x, w, target = inputs(11, torch.float32)

    def all_of_it() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = linear_cross_entropy(x, w, target)
            return [loss, token_losses(x, w, target), *torch.autograd.grad(loss, (x, w))]

    plain = all_of_it()
    monkeypatch.setattr(loss_module, "kernel_for", lambda _: kernels.losses_)
    for ours, theirs in zip(all_of_it(), plain, strict=True):
        assert (ours - theirs).norm() <= (2**-7 if autocast else 1e-6) * theirs.norm()


def test_its_trial_passes_what_is_right_and_nothing_else(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 8192)
    device = torch.device("cpu")
    assert loss_kernel._error(device) < 1
    right = kernels.losses_
    for factor in (1.001, math.nan):
        monkeypatch.setattr(kernels, "losses_", lambda *args, f=factor, **keys: right(*args, **keys) * f)
        assert loss_kernel._error(device) > 1


def test_kernels_serve_where_their_trial_passes_and_one_line_says_so_where_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda _: object())

    def breaks() -> float:
        raise RuntimeError("no such instruction\nand a long story")

    assert gpu_kernels.failing("right", lambda: 0.5, 1.0) is None
    assert not caplog.records
    reasons = [gpu_kernels.failing("wrong", lambda off=off: off, 1.0) for off in (2.0, math.nan)]
    reasons.append(gpu_kernels.failing("broken", breaks, 1.0))
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda _: None)
    reasons.append(gpu_kernels.failing("absent", lambda: 0.5, 1.0))
    assert reasons == [
        "they differ from the plain form by 2.0e+00 of its size",
        "they differ from the plain form by nan of its size",
        "RuntimeError: no such instruction",
        "Triton is not installed",
    ]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == reasons


def test_they_are_for_gpus_and_the_residuals_can_be_left_out_to_be_measured() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert gpu_kernels.wanted(gpu)
    assert gpu_kernels.residual_wanted(gpu)
    assert not gpu_kernels.wanted(cpu)
    assert not gpu_kernels.residual_wanted(cpu)
    with gpu_kernels.REGISTRY.without_residual_kernels():
        assert not gpu_kernels.residual_wanted(gpu)
        assert gpu_kernels.wanted(gpu)
    assert gpu_kernels.residual_wanted(gpu)
