"""Products of bfloat16 matrices that are computed in float32."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from src.kernels import bf16_products
from src.kernels.bf16_products import override_products
from tests.runs import ROOT

# Prints the overridden calls of one step of a linear layer under autocast, and the backends. A warning is an error.
STEP = """
import warnings
warnings.simplefilter("error")
import torch
from src.kernels import bf16_products
from src.kernels.dispatch import REGISTRY
counted, multiply = [], bf16_products._multiply
bf16_products._multiply = lambda native_kernel, keys, *args, **factors: (
    counted.append(str(args[-1].dtype)), multiply(native_kernel, keys, *args, **factors))[1]
bf16_products.compute_in_float32()
bf16_products.compute_in_float32()
layer = torch.nn.Linear(8, 8)
with torch.autocast("cpu", torch.bfloat16):
    y = layer(torch.ones(4, 8, requires_grad=True))
y.float().sum().backward()
print(*counted)
print(REGISTRY.table())
"""


@pytest.fixture
def overridden() -> Iterator[None]:
    with torch.library._scoped_library("aten", "IMPL") as library:
        override_products(library)
        yield


def _draw(*sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) for size in sizes]


PRODUCTS: list[tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = [
    (torch.mm, [(5, 300), (300, 7)]),
    (torch.bmm, [(2, 5, 300), (2, 300, 7)]),
    (lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=2.0), [(7,), (5, 300), (300, 7)]),
    (lambda b, x, w: torch.baddbmm(b, x, w, beta=0.5, alpha=2.0), [(2, 1, 7), (2, 5, 300), (2, 300, 7)]),
    (nn.functional.linear, [(2, 5, 300), (7, 300), (7,)]),
    (lambda q, k: torch.einsum("bthk,bshk->bhts", q, k), [(2, 5, 3, 300), (2, 7, 3, 300)]),
    (lambda x, w: torch.mm(x, w, out=torch.empty(5, 7, dtype=x.dtype)), [(5, 300), (300, 7)]),
    (lambda b, x, w: torch.addmm(b, x, w, beta=0.5, out=b.new_empty(0)), [(7,), (5, 300), (300, 7)]),
    (torch.mm, [(0, 300), (300, 7)]),
    (torch.mm, [(5, 0), (0, 7)]),
]


@pytest.mark.parametrize(("product", "sizes"), PRODUCTS)
def test_a_product_is_that_of_float64_rounded_once(
    overridden: None, product: Callable[..., Tensor], sizes: list[tuple[int, ...]]
) -> None:
    factors = [x.bfloat16() for x in _draw(*sizes)]
    result, exact = product(*factors), product(*(x.double() for x in factors))
    assert result.dtype == torch.bfloat16
    # Half a unit in the last place of eight bits, and float32's rounding of sums that cancel.
    torch.testing.assert_close(result.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("product", "sizes"), PRODUCTS)
def test_products_of_other_dtypes_are_torchs(
    product: Callable[..., Tensor], sizes: list[tuple[int, ...]], dtype: torch.dtype
) -> None:
    factors = [x.to(dtype) for x in _draw(*sizes)]
    before = product(*factors)
    with torch.library._scoped_library("aten", "IMPL") as library:
        override_products(library)
        assert torch.equal(product(*factors), before)
    assert torch.equal(product(*factors), before)


def test_a_product_into_a_given_tensor_is_overridden_too(overridden: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers emit such calls; torch's own product has the same values, so that only the call tells."""
    asked: list[list[torch.dtype]] = []
    monkeypatch.setattr(bf16_products, "_are_bf16", lambda tensors: asked.append([x.dtype for x in tensors]) or True)
    x, w = (factor.bfloat16() for factor in _draw((5, 3), (3, 7)))
    out = torch.empty(0, dtype=torch.bfloat16)
    torch.mm(x, w, out=out)
    assert asked == [[torch.bfloat16] * 3]  # out among them
    torch.testing.assert_close(out, (x.double() @ w.double()).bfloat16())


@pytest.mark.parametrize(("one", "other"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_mixture_of_dtypes_is_torchs_error(overridden: None, one: torch.dtype, other: torch.dtype) -> None:
    x, w = _draw((5, 3), (3, 7))
    with pytest.raises(RuntimeError, match="dtype"):
        x.to(one) @ w.to(other)


def test_forward_and_backward_under_autocast_are_overridden_without_a_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEP], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calls, _, decision = done.stdout.splitlines()
    assert calls.split() == ["torch.bfloat16"] * 3  # y, dx and dw
    assert decision.startswith("bfloat16 products  cpu, bfloat16  float32  this processor has no bfloat16 instructions")
