"""Blend of stream and embedding: it equals the reference in value and gradient."""

import pytest
import torch
from torch import Tensor

from src.kernels.fused_blend import blend_embedding, reference


def random_inputs(n_rest: int, dtype: torch.dtype) -> list[Tensor]:
    """Return x, x0, keep, blend and the rest, whose last is a sublayer's output in bfloat16 if x is float32."""
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(2, 3, 5, generator=generator, dtype=dtype) for _ in range(2 + n_rest)]
    scalars = [torch.tensor(value, dtype=dtype) for value in (0.9, -0.3)]
    if n_rest and dtype == torch.float32:
        wide[-1] = wide[-1].bfloat16()
    return [leaf.requires_grad_() for leaf in (*wide[:2], *scalars, *wide[2:])]


@pytest.mark.parametrize("n_rest", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_the_reference(n_rest: int, dtype: torch.dtype) -> None:
    leaves = random_inputs(n_rest, dtype)
    x, x0, keep, blend, *rest = leaves
    ours = blend_embedding(x, x0, keep, blend, *rest)
    expected = reference(x, x0, keep, blend, *rest)
    dout = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    grads = [torch.autograd.grad(out, leaves, dout) for out in (ours, expected)]
    bound = 1e-13 if dtype == torch.float64 else 2e-6
    for one, other in zip((ours, *grads[0]), (expected, *grads[1]), strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("n_rest", [0, 2])
def test_its_gradients_pass_gradcheck(n_rest: int) -> None:
    assert torch.autograd.gradcheck(blend_embedding, random_inputs(n_rest, torch.float64))


def test_inputs_that_require_no_gradient_get_none() -> None:
    x, x0, keep, blend = random_inputs(0, torch.float64)
    out = blend_embedding(x.detach(), x0.detach(), keep, blend)
    assert all(grad is not None for grad in torch.autograd.grad(out.sum(), [keep, blend]))


def test_it_does_not_change_its_inputs() -> None:
    leaves = random_inputs(2, torch.float64)
    before = [leaf.detach().clone() for leaf in leaves]
    out = blend_embedding(*leaves)
    kept = out.detach().clone()
    out.sum().backward()
    assert all(torch.equal(leaf, then) for leaf, then in zip(leaves, before, strict=True))
    assert torch.equal(out, kept)
