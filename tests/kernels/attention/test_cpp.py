"""Attention on a CPU: the C++ kernel equals the reference; torch's kernel runs where it cannot.

Covers `src/kernels/brgemm.py` too.
"""

import logging

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.attention import OPERATION, causal_attention, cpp, reference
from src.kernels.attention.cpp import TOLERANCE, AttentionKernel, is_applicable
from src.kernels.cpu_matmul import MATMUL
from src.kernels.dispatch import REGISTRY
from src.models.attention import CausalSelfAttention
from src.models.config import GPTConfig
from tests.support import SIZES, tiny_gpt, tokens

SHAPES = [(2, 3, 64, 16), (1, 1, 1, 16), (2, 2, 130, 32), (1, 2, 63, 64), (3, 1, 192, 48)]


def draw(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, as views of one projection, and a gradient; [B, H, T, K]."""
    generator = torch.Generator().manual_seed(0)
    B, H, T, K = shape
    x = torch.randn(B, T, 3, H, K, generator=generator).to(dtype)
    dy = torch.randn(B, T, H, K, generator=generator).to(dtype).transpose(1, 2)
    return [*(part.transpose(1, 2) for part in x.unbind(2)), dy]


def differentiate(out: Tensor, leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, leaves, dy)]


def by_reference(leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Return value and gradients in float64."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    return differentiate(reference.causal_attention(*exact), exact, dy.double())


def need_kernel(dtype: torch.dtype, head_size: int) -> None:
    if OPERATION.backend_for(torch.ones(1, dtype=dtype), head_size=head_size) != "cpp":
        pytest.skip("there is no kernel on this machine")


def worst(ones: list[Tensor], others: list[Tensor]) -> float:
    return max(
        float((a - b).abs().amax() / b.abs().amax()) for a, b in zip(ones, others, strict=True)
    )  # of their sizes


# ---- the kernel


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_it_equals_the_reference(shape: tuple[int, int, int, int]) -> None:
    if cpp.SOURCE.why_not(torch.device("cpu"), torch.float64, width=shape[-1]) is not None:
        pytest.skip("no C++ compiler")
    kernels = cpp.SOURCE.load(torch.float64, shape[-1])
    kernel = AttentionKernel(kernels, torch.float64, (0, 0))  # with a product of its own
    q, k, v, dy = (x.double() for x in draw(shape))
    y, lse = kernel.forward(q, k, v)
    found = [y, *kernel.backward(dy, (q, k, v), y, lse)]
    assert worst(found, by_reference([q, k, v], dy)) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_the_reference_to_rounding(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    need_kernel(dtype, shape[-1])
    *qkv, dy = draw(shape, dtype)
    leaves = [part.requires_grad_() for part in qkv]
    ours = differentiate(causal_attention(*leaves), leaves, dy)
    assert {x.dtype for x in ours} == {dtype}
    exact = by_reference(leaves, dy)
    assert worst(ours, exact) < TOLERANCE[dtype]
    torchs = differentiate(F.scaled_dot_product_attention(*leaves, is_causal=True), leaves, dy)
    assert worst(ours, exact) < 2 * worst(torchs, exact) + 1e-6
    if shape[2] > 1:  # else the strides of tokens and batches say nothing
        assert [x.stride() for x in ours] == [x.stride() for x in torchs]


def test_it_is_called_only_if_gradients_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    need_kernel(torch.float32, 16)
    calls: list[str] = []
    call = AttentionKernel.__call__
    monkeypatch.setattr(
        AttentionKernel, "__call__", lambda self, name, *rest: (calls.append(name), call(self, name, *rest))[1]
    )
    *qkv, dy = draw((1, 2, 32, 16))
    leaves = [part.requires_grad_() for part in qkv]
    differentiate(causal_attention(*leaves), leaves, dy)
    assert calls == ["attention", "attention_backward"]
    with torch.no_grad():
        causal_attention(*leaves)
    assert len(calls) == 2


def test_a_token_attends_to_no_later_token_whatever_is_in_it() -> None:
    need_kernel(torch.float32, 16)
    q, k, v, dy = draw((1, 1, 100, 16))
    y, *_ = differentiate(causal_attention(*(leaves := [x.requires_grad_() for x in (q, k, v)])), leaves, dy)
    later_k, later_v = k.detach().clone(), v.detach().clone()
    later_k[:, :, 70:], later_v[:, :, 70:] = 1e4, -7.0
    changed = [q.detach().requires_grad_(), later_k.requires_grad_(), later_v.requires_grad_()]
    assert torch.equal(causal_attention(*changed)[:, :, :70], y[:, :, :70])
    lost = k.detach().clone()
    lost[:, :, 64:] = float("nan")  # in another tile, of which nothing is read
    seen = causal_attention(q.detach().requires_grad_(), lost.requires_grad_(), v.detach().requires_grad_())
    assert torch.equal(seen[:, :, :64], y[:, :, :64])
    assert seen[:, :, 65:].isnan().all()


def test_large_scores_do_not_overflow() -> None:
    need_kernel(torch.float32, 16)
    q, k, v, dy = draw((1, 2, 80, 16))
    leaves = [x.detach().requires_grad_() for x in (30 * q, 30 * k, v)]
    assert worst(differentiate(causal_attention(*leaves), leaves, dy), by_reference(leaves, dy)) < 1e-4


def test_the_number_of_threads_changes_no_bit() -> None:
    need_kernel(torch.float32, 16)
    *qkv, dy = draw((2, 3, 70, 16))
    leaves = [part.requires_grad_() for part in qkv]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(differentiate(causal_attention(*leaves), leaves, dy))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_other_layouts_give_the_same_bits() -> None:
    need_kernel(torch.float32, 16)
    *qkv, dy = draw((2, 2, 40, 16))
    views = [part.requires_grad_() for part in qkv]
    ours = differentiate(causal_attention(*views), views, dy)
    dense = [part.detach().contiguous().requires_grad_() for part in qkv]
    turned = [part.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for part in qkv]
    for leaves in (dense, turned):
        others = differentiate(causal_attention(*leaves), leaves, dy.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


# ---- selection


def test_it_is_applicable_where_torch_would_take_its_kernel_and_gradients_are_needed() -> None:
    q, k, v, _ = draw((1, 2, 16, 16))
    assert is_applicable(q, k, v, 0.0)
    assert is_applicable(*(x.bfloat16() for x in (q, k, v)), 0.0)
    assert not is_applicable(q, k, v, 0.1)
    assert not is_applicable(q[..., :4], k[..., :4], v, 0.0)
    assert not is_applicable(*(x.double() for x in (q, k, v)), 0.0)
    assert not is_applicable(q, k, v.bfloat16(), 0.0)
    assert not is_applicable(*(x.to("meta") for x in (q, k, v)), 0.0)
    with torch.no_grad():
        assert not is_applicable(q, k, v, 0.0)
        MATMUL.set(True)
        assert is_applicable(q, k, v, 0.0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("a wrong result", "output 0 of case 0 is off by nan"),
        ("no such product", "AttributeError: undefined symbol: brgemm"),
        ("no compiler", "there is no C++ compiler"),
    ],
)
def test_torchs_kernel_runs_if_ours_is_rejected_and_one_line_says_why(
    fault: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> tuple[int, int]:
        raise AttributeError("undefined symbol: brgemm")

    need_kernel(torch.float32, 16)
    monkeypatch.setattr(REGISTRY, "decisions", {})
    monkeypatch.setattr(cpp, "load_kernel", cpp.load_kernel.__wrapped__)
    if fault == "a wrong result":
        wrong = lambda self, *qkv: (torch.full_like(qkv[0], torch.nan), qkv[0][..., 0].contiguous())  # noqa: E731
        monkeypatch.setattr(AttentionKernel, "forward", wrong)
    elif fault == "no such product":
        monkeypatch.setattr(cpp, "find_products", missing)
    else:
        monkeypatch.setattr(cpp.SOURCE, "why_not", lambda *_, **__: reason)
    *qkv, dy = draw((2, 2, 40, 16))
    for views in (qkv, [part.contiguous() for part in qkv]):
        leaves = [part.requires_grad_() for part in views]
        with caplog.at_level(logging.INFO):
            ours = differentiate(causal_attention(*leaves), leaves, dy)
        torchs = differentiate(F.scaled_dot_product_attention(*leaves, is_causal=True), leaves, dy)
        assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
        assert ours[0].transpose(1, 2).is_contiguous()
    (message,) = caplog.messages
    assert message.startswith("causal attention falls back to PyTorch on cpu (torch.float32): ")
    assert reason in message


def test_torchs_kernel_runs_without_onednn_and_other_products_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(OPERATION, "backend_for", lambda *_, **__: "reference")
    for name in ("_torch_forward", "_torch_backward"):
        right = getattr(cpp, name)
        monkeypatch.setattr(
            cpp,
            name,
            lambda *args, f=right: (seen.append(torch.get_float32_matmul_precision()), f(*args))[1],
        )
    MATMUL.set(True)
    *qkv, dy = draw((1, 2, 16, 16))
    leaves = [part.requires_grad_() for part in qkv]
    differentiate(causal_attention(*leaves), leaves, dy)
    assert seen == ["highest", "highest"]
    assert torch.get_float32_matmul_precision() == "medium"


# ---- in a model


def test_a_compiler_traces_it_in_one_graph_and_follows_the_choice_of_products() -> None:
    torch.manual_seed(0)
    sublayer = CausalSelfAttention(GPTConfig(**{**SIZES, "n_embd": 32, "n_head": 2}))
    x = torch.randn(2, 16, 32, requires_grad=True)
    leaves, dy = [x, *sublayer.parameters()], torch.randn(2, 16, 32)
    compiled = torch.compile(sublayer, backend="aot_eager", fullgraph=True)
    for on in (False, True, False):
        MATMUL.set(on)
        for one, other in zip(
            differentiate(compiled(x), leaves, dy), differentiate(sublayer(x), leaves, dy), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_models_loss_and_gradients_equal_those_of_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    need_kernel(torch.float32, 16)
    idx = tokens(2, 13)

    def train() -> list[Tensor]:
        gpt = tiny_gpt(n_embd=32, n_head=2)
        loss = gpt.head_loss(gpt.hidden(idx[:, :-1]), idx[:, 1:])
        return differentiate(loss, list(gpt.parameters()), torch.ones(()))

    ours = train()
    monkeypatch.setattr(cpp, "is_applicable", lambda *_: False)
    torchs = train()
    assert not all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
