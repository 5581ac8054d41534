"""Distribution of the activations that sites read: effective rank, kurtosis, massive activations.

Each is a number of the matrix X [T, D] of one sequence.

    effective rank      exp(-sum_i p_i ln p_i),  p_i = s_i / sum_j s_j over the singular values of X
    token kurtosis      mean over tokens of m_4 / m_2^2, with the central moments over a token's channels; Gaussian: 3
    channel kurtosis    mean_d(r_d^4) / mean_d(r_d^2)^2,  r_d = the RMS of channel d over tokens; 1 if all are equal, at
                        most D
    largest, median     of |x| over tokens and channels, and their ratio
    massive             number of |x| > 100 that are also at least 1000 times the median

Source: Roy and Vetterli, "The effective rank" (EUSIPCO 2007), definition 1; He et al., "Understanding and Minimising
Outlier Features" (arXiv 2405.19279), section 2 (channel kurtosis); Sun et al., "Massive Activations in Large Language
Models" (arXiv 2402.17762), section 2 (massive; the bound of 100 is for models of billions of parameters).
Shape letters: B batch, T tokens, D n_embd, K = S + 1 reads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Criterion of massive activations: bound of |x|, and of its ratio to the median.
MASSIVE_SIZE, MASSIVE_RATIO = 100.0, 1000.0
TINY = torch.finfo(torch.float64).tiny


def measure_activations(read_BTD: tuple[Tensor, ...]) -> dict[str, Tensor | str]:
    """Return the measures of every read, [B, K] each."""
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "effective_rank": effective_rank,
        "token_kurtosis": token_kurtosis,
        "channel_kurtosis": channel_kurtosis,
        "largest": lambda x_BTD: x_BTD.abs().amax((1, 2)),
        "median": _median_size,
        "largest_over_median": lambda x_BTD: x_BTD.abs().amax((1, 2)) / _median_size(x_BTD),
        "massive": count_massive,
    }
    return {name: torch.stack([measure(x_BTD) for x_BTD in read_BTD], dim=1) for name, measure in measures.items()}


def effective_rank(x_BTD: Tensor) -> Tensor:
    """Return the effective rank of every sequence, [B], between 1 and min(T, D); NaN where a value is not finite."""
    x_BTD = x_BTD.double()
    is_finite_B = x_BTD.isfinite().flatten(1).all(1)
    x_BTD = x_BTD.where(is_finite_B[:, None, None], 0.0)  # eigvalsh raises an error on NaN
    # Singular values from the smaller of X X^T and X^T X.
    gram = x_BTD @ x_BTD.mT if x_BTD.shape[1] <= x_BTD.shape[2] else x_BTD.mT @ x_BTD
    size = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    p = size / size.sum(-1, keepdim=True).clamp_min(TINY)
    rank_B = torch.special.entr(p).sum(-1).exp()
    return torch.where(is_finite_B, rank_B, torch.nan)


def token_kurtosis(x_BTD: Tensor) -> Tensor:
    """Return the mean over tokens of the kurtosis over channels, [B]; 3 for Gaussian channels."""
    x_BTD = x_BTD.double()
    square_BTD = (x_BTD - x_BTD.mean(-1, keepdim=True)).square()
    return (square_BTD.square().mean(-1) / square_BTD.mean(-1).square()).mean(1)


def channel_kurtosis(x_BTD: Tensor) -> Tensor:
    """Return the kurtosis of the channels' RMS, [B], between 1 (all equal) and D (one channel alone)."""
    square_BD = x_BTD.double().square().mean(1)
    return square_BD.square().mean(-1) / square_BD.mean(-1).square()


def count_massive(x_BTD: Tensor) -> Tensor:
    """Return the number of massive activations of every sequence, [B]."""
    bound_B = (MASSIVE_RATIO * _median_size(x_BTD)).clamp_min(MASSIVE_SIZE)
    size_BTD = x_BTD.abs()
    return ((size_BTD > MASSIVE_SIZE) & (size_BTD >= bound_B[:, None, None])).sum((1, 2)).double()


def _median_size(x_BTD: Tensor) -> Tensor:
    return x_BTD.abs().flatten(1).median(1).values
