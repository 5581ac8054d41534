"""The maps to the mixing lie in the sets that they are named after and start near the identity."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from src.residual.families.manifolds import ManifoldName, build_manifold

NAMES = get_args(ManifoldName)
every_map = pytest.mark.parametrize("name", NAMES)


def random_logits(n_logit: int) -> Tensor:
    return torch.randn(2, 5, n_logit, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("name", ["sinkhorn", "permutations", "orthostochastic"])
def test_the_matrices_are_doubly_stochastic(name: ManifoldName, n: int) -> None:
    manifold = build_manifold(name, n, 8.0, n_iteration=200).double()
    m_BTNN = manifold(random_logits(len(manifold.logits)))
    assert m_BTNN.shape == (2, 5, n, n)
    assert m_BTNN.ge(0).all()
    for dim in (-1, -2):
        assert torch.allclose(m_BTNN.sum(dim), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_cayley_transform_is_a_rotation(n: int) -> None:
    manifold = build_manifold("cayley", n, 8.0, n_iteration=1)
    q_BTNN = manifold(random_logits(len(manifold.logits)))
    assert torch.allclose(q_BTNN @ q_BTNN.mT, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(torch.linalg.det(q_BTNN), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_cayley_transform_of_a_plane_rotates_by_twice_the_arc_tangent() -> None:
    angle = torch.tensor(0.7, dtype=torch.float64)
    q_NN = build_manifold("cayley", 2, 8.0, n_iteration=1)((angle / 2).tan().view(1, 1, 1))[0, 0]
    expected = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
    assert torch.allclose(q_NN, expected, rtol=0, atol=1e-12)


@every_map
def test_at_first_the_matrix_is_close_to_the_identity_and_every_logit_moves_it(name: ManifoldName) -> None:
    manifold = build_manifold(name, 4, 8.0, n_iteration=20).double()
    logit_BTL = torch.tensor(manifold.logits, dtype=torch.float64).view(1, 1, -1).requires_grad_()
    m_NN = manifold(logit_BTL)[0, 0]
    off_diagonal = m_NN - m_NN.diagonal().diag()
    share = 0.0 if name == "cayley" else math.exp(-8)
    assert torch.allclose(off_diagonal.sum(1), torch.full((4,), 3 * share, dtype=torch.float64), rtol=0.02, atol=1e-12)
    assert torch.allclose(m_NN.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-9)
    weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (grad,) = torch.autograd.grad((weights * m_NN).sum(), logit_BTL)
    assert grad.abs().min() > 1e-6


@every_map
def test_an_export_loaded_in_bfloat16_computes_in_it(name: ManifoldName) -> None:
    manifold = build_manifold(name, 4, 8.0, n_iteration=20)
    logit_BTL = random_logits(len(manifold.logits)).float()
    found = manifold.bfloat16()(logit_BTL.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), manifold.float()(logit_BTL), rtol=0, atol=0.05)


def test_too_many_permutations_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"n_stream must be <= 5 with residual.manifold=permutations"):
        build_manifold("permutations", 6, 8.0, n_iteration=1)
