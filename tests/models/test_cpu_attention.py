"""Attention beside oneDNN's products: torch's own kernel, bit for bit, with MKL's products in it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from src.cpu_products import by_onednn
from src.models import cpu_attention
from src.models.attention import CausalSelfAttention
from src.models.config import GPTConfig
from src.models.cpu_attention import attention, serves
from tests.support import SIZES


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, as views of one projection, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    B, H, T, K = shape
    x = torch.randn(B, T, 3, H, K, generator=generator, dtype=dtype)
    dy = torch.randn(B, T, H, K, generator=generator, dtype=dtype).transpose(1, 2)
    return [*(part.transpose(1, 2) for part in x.unbind(2)), dy]


def pulled(made: Tensor, leaves: list[Tensor], dy: Tensor) -> list[Tensor]:
    return [made.detach(), *torch.autograd.grad(made, leaves, dy)]


@pytest.mark.parametrize("shape", [(2, 4, 64, 16), (1, 1, 1, 8), (2, 3, 37, 20)])
def test_it_is_torchs_kernel_bit_for_bit(shape: tuple[int, int, int, int]) -> None:
    *qkv, dy = drawn(*shape)
    leaves = [part.requires_grad_() for part in qkv]
    by_onednn(False)
    plain = pulled(F.scaled_dot_product_attention(*leaves, is_causal=True), leaves, dy)
    by_onednn(True)
    ours = pulled(attention(*leaves), leaves, dy)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert ours[0].stride() == plain[0].stride()


def test_its_products_are_mkls_and_the_others_oednns_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("_forward", "_backward"):
        kernel = getattr(cpu_attention, name)
        monkeypatch.setattr(
            cpu_attention,
            name,
            lambda *args, kernel=kernel: (seen.append(torch.get_float32_matmul_precision()), kernel(*args))[1],
        )
    by_onednn(True)
    *qkv, dy = drawn(1, 2, 16, 8)
    leaves = [part.requires_grad_() for part in qkv]
    pulled(attention(*leaves), leaves, dy)
    assert seen == ["highest", "highest"]
    assert torch.get_float32_matmul_precision() == "medium"


def test_it_serves_where_torch_would_take_the_same_kernel() -> None:
    q, k, v, _ = drawn(1, 2, 16, 8)
    by_onednn(False)
    assert not serves(q, k, v, 0.0)
    by_onednn(True)
    assert serves(q, k, v, 0.0)
    assert not serves(q, k, v, 0.1)
    assert not serves(q[..., :4], k[..., :4], v, 0.0)
    assert not serves(*(x.bfloat16() for x in (q, k, v)), 0.0)
    assert not serves(*(x.double() for x in (q, k, v)), 0.0)
    assert not serves(*(x.to("meta") for x in (q, k, v)), 0.0)


def test_the_sublayer_calls_it_and_a_compiler_takes_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    by_onednn(True)
    torch.manual_seed(0)
    sublayer = CausalSelfAttention(GPTConfig(**SIZES))
    x = torch.randn(2, 16, sublayer.c_proj.in_features, requires_grad=True)
    leaves = [x, *sublayer.parameters()]
    dy = torch.randn(2, 16, sublayer.c_proj.in_features)
    calls = []
    made = cpu_attention._attention
    monkeypatch.setattr(cpu_attention, "_attention", lambda *qkv: (calls.append(1), made(*qkv))[1])
    ours = pulled(sublayer(x), leaves, dy)
    assert calls
    monkeypatch.undo()
    compiled = torch.compile(sublayer, backend="aot_eager", fullgraph=True)
    by_compiler = pulled(compiled(x), leaves, dy)
    by_onednn(False)
    plain = pulled(sublayer(x), leaves, dy)
    for a, b, c in zip(ours, by_compiler, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


def test_a_compiled_sublayer_follows_the_choice() -> None:
    torch.manual_seed(0)
    sublayer = CausalSelfAttention(GPTConfig(**SIZES))
    x = torch.randn(2, 16, sublayer.c_proj.in_features)
    compiled = torch.compile(sublayer, backend="aot_eager", fullgraph=True)
    for on in (False, True, False):
        by_onednn(on)
        torch.testing.assert_close(compiled(x), sublayer(x), rtol=1e-6, atol=1e-6)
