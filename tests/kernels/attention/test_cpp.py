"""Attention on a CPU: the kernel against the equations, when it serves, and torch's own kernel where it does not."""

import logging

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.kernels.attention import cpp as cpu_attention
from src.kernels.attention.cpp import ROUNDING, _Attention, _tried, attention, serves
from src.kernels.cpp_build import built_for
from src.kernels.cpu_matmul import MATMUL
from src.models.attention import CausalSelfAttention
from src.models.config import GPTConfig
from tests.support import SIZES, tiny_gpt, tokens

SHAPES = [(2, 3, 64, 16), (1, 1, 1, 16), (2, 2, 130, 32), (1, 2, 63, 64), (3, 1, 192, 48)]


def drawn(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, as views of one projection, and a gradient; [B, H, T, K]."""
    generator = torch.Generator().manual_seed(0)
    B, H, T, K = shape
    x = torch.randn(B, T, 3, H, K, generator=generator).to(dtype)
    dy = torch.randn(B, T, H, K, generator=generator).to(dtype).transpose(1, 2)
    return [*(part.transpose(1, 2) for part in x.unbind(2)), dy]


def pulled(made: Tensor, leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    return [made.detach(), *torch.autograd.grad(made, leaves, dy)]


def by_equation(leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    """In float64."""
    q, k, v = (leaf.detach().double().requires_grad_() for leaf in leaves)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    y = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return pulled(y, [q, k, v], dy.double())


def kernel(dtype: torch.dtype, head_size: int) -> _Attention:
    """The kernel, or no test."""
    found = _tried(dtype, head_size)
    if found is None:
        pytest.skip("there is no kernel here")
    return found


def worst(ones: list[Tensor], others: list[Tensor]) -> float:
    return max(
        float((a - b).abs().amax() / b.abs().amax()) for a, b in zip(ones, others, strict=True)
    )  # of their sizes


# ---- the kernel


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_it_is_the_equation(shape: tuple[int, int, int, int]) -> None:
    kernels = built_for(torch.float64, shape[-1], "kernels/attention/attention")
    if kernels is None:
        pytest.skip("no C++ compiler")
    made = _Attention(kernels, torch.float64, (0, 0))  # with a product of its own
    q, k, v, dy = (x.double() for x in drawn(shape))
    y, lse = made.forward(q, k, v)
    found = [y, *made.backward(dy, (q, k, v), y, lse)]
    assert worst(found, by_equation([q, k, v], dy)) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_equation_up_to_rounding(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    kernel(dtype, shape[-1])
    *qkv, dy = drawn(shape, dtype)
    leaves = [part.requires_grad_() for part in qkv]
    ours = pulled(attention(*leaves), leaves, dy)
    assert {x.dtype for x in ours} == {dtype}
    exact = by_equation(leaves, dy)
    assert worst(ours, exact) < ROUNDING[dtype]
    torchs = pulled(F.scaled_dot_product_attention(*leaves, is_causal=True), leaves, dy)
    assert worst(ours, exact) < 2 * worst(torchs, exact) + 1e-6
    if shape[2] > 1:  # else the strides of tokens and batches say nothing
        assert [x.stride() for x in ours] == [x.stride() for x in torchs]


def test_it_is_called_for_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(torch.float32, 16)
    calls: list[str] = []
    made = _Attention.__call__
    monkeypatch.setattr(
        _Attention, "__call__", lambda self, name, *rest: (calls.append(name), made(self, name, *rest))[1]
    )
    *qkv, dy = drawn((1, 2, 32, 16))
    leaves = [part.requires_grad_() for part in qkv]
    pulled(attention(*leaves), leaves, dy)
    assert calls == ["attention", "attention_backward"]
    with torch.no_grad():
        attention(*leaves)
    assert len(calls) == 2


def test_a_token_sees_none_that_follow_and_nothing_infinite_in_them() -> None:
    kernel(torch.float32, 16)
    q, k, v, dy = drawn((1, 1, 100, 16))
    y, *_ = pulled(attention(*(leaves := [x.requires_grad_() for x in (q, k, v)])), leaves, dy)
    later_k, later_v = k.detach().clone(), v.detach().clone()
    later_k[:, :, 70:], later_v[:, :, 70:] = 1e4, -7.0
    changed = [q.detach().requires_grad_(), later_k.requires_grad_(), later_v.requires_grad_()]
    assert torch.equal(attention(*changed)[:, :, :70], y[:, :, :70])
    lost = k.detach().clone()
    lost[:, :, 64:] = float("nan")  # of another block: nothing of it is read
    seen = attention(q.detach().requires_grad_(), lost.requires_grad_(), v.detach().requires_grad_())
    assert torch.equal(seen[:, :, :64], y[:, :, :64])
    assert seen[:, :, 65:].isnan().all()


def test_large_scores_do_not_overflow() -> None:
    kernel(torch.float32, 16)
    q, k, v, dy = drawn((1, 2, 80, 16))
    leaves = [x.detach().requires_grad_() for x in (30 * q, 30 * k, v)]
    assert worst(pulled(attention(*leaves), leaves, dy), by_equation(leaves, dy)) < 1e-4


def test_threads_change_nothing() -> None:
    kernel(torch.float32, 16)
    *qkv, dy = drawn((2, 3, 70, 16))
    leaves = [part.requires_grad_() for part in qkv]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(pulled(attention(*leaves), leaves, dy))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_other_layouts_give_the_same() -> None:
    kernel(torch.float32, 16)
    *qkv, dy = drawn((2, 2, 40, 16))
    views = [part.requires_grad_() for part in qkv]
    ours = pulled(attention(*views), views, dy)
    dense = [part.detach().contiguous().requires_grad_() for part in qkv]
    turned = [part.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for part in qkv]
    for leaves in (dense, turned):
        others = pulled(attention(*leaves), leaves, dy.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


# ---- when it serves


def test_it_serves_where_torch_would_take_its_kernel_and_gradients_are_wanted() -> None:
    q, k, v, _ = drawn((1, 2, 16, 16))
    assert serves(q, k, v, 0.0)
    assert serves(*(x.bfloat16() for x in (q, k, v)), 0.0)
    assert not serves(q, k, v, 0.1)
    assert not serves(q[..., :4], k[..., :4], v, 0.0)
    assert not serves(*(x.double() for x in (q, k, v)), 0.0)
    assert not serves(q, k, v.bfloat16(), 0.0)
    assert not serves(*(x.to("meta") for x in (q, k, v)), 0.0)
    with torch.no_grad():
        assert not serves(q, k, v, 0.0)
        MATMUL.set(True)
        assert serves(q, k, v, 0.0)


@pytest.mark.parametrize("fault", ["a wrong result", "no such product", "no compiler"])
def test_where_it_fails_torchs_kernel_runs_and_one_line_says_why(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> tuple[int, int]:
        raise AttributeError("undefined symbol: brgemm")

    kernel(torch.float32, 16)
    _tried.cache_clear()
    if fault == "a wrong result":
        monkeypatch.setattr(cpu_attention, "error", lambda *_: float("nan"))
    elif fault == "no such product":
        monkeypatch.setattr(cpu_attention, "small_products", missing)
    else:
        monkeypatch.setattr(cpu_attention, "built_for", lambda *_: None)
    *qkv, dy = drawn((2, 2, 40, 16))
    for views in (qkv, [part.contiguous() for part in qkv]):
        leaves = [part.requires_grad_() for part in views]
        with caplog.at_level(logging.INFO):
            ours = pulled(attention(*leaves), leaves, dy)
        plain = pulled(F.scaled_dot_product_attention(*leaves, is_causal=True), leaves, dy)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
        assert ours[0].transpose(1, 2).is_contiguous()
    told = [m for m in caplog.messages if "is not used, which costs speed only" in m]
    assert len(told) == (fault != "no compiler")  # of which the builder speaks
    _tried.cache_clear()


def test_without_it_torchs_products_are_mkls_and_the_others_onednns_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(cpu_attention, "_tried", lambda *_: None)
    for name in ("_torchs", "_torchs_backward"):
        made = getattr(cpu_attention, name)
        monkeypatch.setattr(
            cpu_attention,
            name,
            lambda *args, made=made: (seen.append(torch.get_float32_matmul_precision()), made(*args))[1],
        )
    MATMUL.set(True)
    *qkv, dy = drawn((1, 2, 16, 16))
    leaves = [part.requires_grad_() for part in qkv]
    pulled(attention(*leaves), leaves, dy)
    assert seen == ["highest", "highest"]
    assert torch.get_float32_matmul_precision() == "medium"


# ---- in a model


def test_a_compiler_takes_it_whole_and_follows_the_choice() -> None:
    torch.manual_seed(0)
    sublayer = CausalSelfAttention(GPTConfig(**{**SIZES, "n_embd": 32, "n_head": 2}))
    x = torch.randn(2, 16, 32, requires_grad=True)
    leaves, dy = [x, *sublayer.parameters()], torch.randn(2, 16, 32)
    compiled = torch.compile(sublayer, backend="aot_eager", fullgraph=True)
    for on in (False, True, False):
        MATMUL.set(on)
        for one, other in zip(pulled(compiled(x), leaves, dy), pulled(sublayer(x), leaves, dy), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_models_loss_and_gradients_are_those_of_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(torch.float32, 16)
    idx = tokens(2, 13)

    def trained() -> list[Tensor]:
        gpt = tiny_gpt(n_embd=32, n_head=2)
        loss = gpt.head_loss(gpt.hidden(idx[:, :-1]), idx[:, 1:])
        return pulled(loss, list(gpt.parameters()), torch.ones(()))

    ours = trained()
    monkeypatch.setattr("src.models.attention.serves", lambda *_: False)
    plain = trained()
    assert not all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
