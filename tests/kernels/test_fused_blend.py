"""The blend of stream and embedding: the plain sum, in value and gradient."""

import pytest
import torch
from torch import Tensor

from src.kernels.fused_blend import blended


def drawn(n_rest: int, dtype: torch.dtype) -> list[Tensor]:
    """x, x0, keep, blend and the rest, of which the last is a sublayer's output in bfloat16 where x is float32."""
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(2, 3, 5, generator=generator, dtype=dtype) for _ in range(2 + n_rest)]
    scalars = [torch.tensor(value, dtype=dtype) for value in (0.9, -0.3)]
    if n_rest and dtype == torch.float32:
        wide[-1] = wide[-1].bfloat16()
    return [leaf.requires_grad_() for leaf in (*wide[:2], *scalars, *wide[2:])]


@pytest.mark.parametrize("n_rest", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_plain_sum(n_rest: int, dtype: torch.dtype) -> None:
    leaves = drawn(n_rest, dtype)
    x, x0, keep, blend, *rest = leaves
    ours = blended(x, x0, keep, blend, *rest)
    plain = keep * x + blend * x0 + (rest[0] + rest[1] if rest else 0)
    dout = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    grads = [torch.autograd.grad(out, leaves, dout) for out in (ours, plain)]
    bound = 1e-13 if dtype == torch.float64 else 2e-6
    for one, other in zip((ours, *grads[0]), (plain, *grads[1]), strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("n_rest", [0, 2])
def test_its_gradient_is_its_own(n_rest: int) -> None:
    assert torch.autograd.gradcheck(blended, drawn(n_rest, torch.float64))


def test_what_asks_for_no_gradient_gets_none() -> None:
    x, x0, keep, blend = drawn(0, torch.float64)
    out = blended(x.detach(), x0.detach(), keep, blend)
    assert all(grad is not None for grad in torch.autograd.grad(out.sum(), [keep, blend]))


def test_it_leaves_what_it_is_given_as_it_was() -> None:
    leaves = drawn(2, torch.float64)
    before = [leaf.detach().clone() for leaf in leaves]
    out = blended(*leaves)
    kept = out.detach().clone()
    out.sum().backward()
    assert all(torch.equal(leaf, then) for leaf, then in zip(leaves, before, strict=True))
    assert torch.equal(out, kept)
