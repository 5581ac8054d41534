"""Measures of activations against known matrices and a few lines of numpy."""

import math

import numpy as np
import torch

from src.analysis import activations
from src.analysis.activations import channel_kurtosis, count_massive, effective_rank, token_kurtosis


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_effective_rank_of_known_singular_values() -> None:
    one = torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 4))
    equal = torch.eye(5, 3)
    # Singular values 3 and 1: p = 3/4, 1/4.
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert math.isclose(effective_rank(one[None]).item(), 1, rel_tol=1e-4)
    assert math.isclose(effective_rank(equal[None]).item(), 3, rel_tol=1e-6)
    assert math.isclose(effective_rank(two[None]).item(), expected, rel_tol=1e-6)


def test_effective_rank_equals_that_of_a_singular_value_decomposition() -> None:
    for shape in ((2, 7, 20), (2, 20, 7)):
        x = normal(*shape)
        for found, matrix in zip(effective_rank(x), x.double().numpy(), strict=True):
            size = np.linalg.svd(matrix, compute_uv=False)
            p = size / size.sum()
            assert math.isclose(found.item(), math.exp(-(p * np.log(p)).sum()), rel_tol=1e-9)


def test_the_effective_rank_of_values_that_are_not_finite_is_nan() -> None:
    x = normal(3, 5, 4)
    x[1, 2, 3], x[2, 0, 0] = math.nan, math.inf
    found = effective_rank(x)
    assert found[0].item() == effective_rank(x[:1]).item()
    assert found[1:].isnan().all()


def test_kurtosis_of_gaussian_channels_is_3_and_of_signs_1() -> None:
    x = normal(2, 400, 400)
    assert torch.allclose(token_kurtosis(x), torch.full((2,), 3.0, dtype=torch.float64), atol=0.05)
    assert torch.allclose(token_kurtosis(x.sign()), torch.ones(2, dtype=torch.float64), atol=0.02)
    # A constant is removed: the moments are central.
    assert torch.allclose(token_kurtosis(x + 5), token_kurtosis(x), rtol=1e-3)


def test_channel_kurtosis_is_1_for_equal_channels_and_their_number_for_a_single_one() -> None:
    equal, single = torch.ones(1, 6, 8), torch.zeros(1, 6, 8)
    single[..., 3] = torch.arange(1.0, 7)
    assert channel_kurtosis(equal).item() == 1
    assert math.isclose(channel_kurtosis(single).item(), 8)
    x = normal(1, 6, 8)
    rms = x[0].square().mean(0).sqrt().double().numpy()
    assert math.isclose(channel_kurtosis(x).item(), (rms**4).mean() / (rms**2).mean() ** 2, rel_tol=1e-5)


def test_massive_activations_exceed_both_bounds() -> None:
    x = torch.full((3, 4, 5), 0.2)
    x[0, 0, 0] = 250.0  # more than 100, and 1250 times the median
    x[0, 1, 2] = -201.0
    x[1, 0, 0] = 150.0  # 750 times the median
    x[2] = 0.01
    x[2, 0, 0] = 90.0  # 9000 times the median, but below 100
    assert count_massive(x).tolist() == [2, 0, 0]
    found = activations.measure_activations((x, 2 * x))
    assert torch.allclose(found["largest"], torch.tensor([[250.0, 500], [150, 300], [90, 180]]))
    assert torch.allclose(found["largest_over_median"][:, 0], torch.tensor([1250.0, 750, 9000]))
    assert {value.shape for value in found.values()} == {(3, 2)}
