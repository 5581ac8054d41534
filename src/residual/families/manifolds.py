"""Maps from free numbers to the matrix by which manifold-constrained hyper-connections mix N streams.

    sinkhorn          rows and columns of exp(logits) normalized alternately: doubly stochastic in the limit
    permutations      sum_r softmax(logits)_r P_r over all N! permutations: doubly stochastic
    cayley            Q = (I + K)^-1 (I - K), K skew-symmetric with the logits above its diagonal: a rotation
    orthostochastic   the squared entries of the same Q: doubly stochastic

All start close to the identity, with entries of about exp(-res_logit) off the diagonal. A rotation starts at the
identity; orthostochastic cannot, since all derivatives of the squared entries are zero there.

Source: sinkhorn, Xie et al., "mHC" (arXiv 2512.24880), equations 8-9; permutations, FFTYYY/mhc-lite; cayley, the
Cayley transform (1846); orthostochastic, the textbook definition, as in `hyper_connections/hyper_connections.py` of
tokenbender/mHC-manifold-constrained-hyper-connections, which takes Q from Newton-Schulz iterations instead.
Shape letters: N streams, L logits.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor, nn

from src.kernels.hyper_streams.sinkhorn import sinkhorn

ManifoldName = Literal["sinkhorn", "permutations", "cayley", "orthostochastic"]
#: Largest number of streams of `permutations`: 120 of them; 6 streams would have 720.
MAX_STREAM = 5


class Manifold(nn.Module, ABC):
    """Map without parameters from L logits to a mixing matrix.

    Args:
        n_stream: N.
        res_logit: logarithm of the initial ratio of the matrix's diagonal to its other entries, approximately.
    """

    #: Initial biases of the L logits, with which the matrix starts close to the identity.
    logits: list[float]

    def __init__(self, n_stream: int, res_logit: float) -> None:
        super().__init__()
        self.n_stream, self.logits = n_stream, self.initial_logits(n_stream, res_logit)

    @abstractmethod
    def initial_logits(self, n: int, res_logit: float) -> list[float]:
        """Return `logits`."""

    @abstractmethod
    def forward(self, logit_BTL: Tensor) -> Tensor:
        """Return the matrix [B, T, N, N] of every token, for H <- matrix H."""


class Sinkhorn(Manifold):
    """N * N logits, of the entries."""

    def __init__(self, n_stream: int, res_logit: float, n_iteration: int) -> None:
        super().__init__(n_stream, res_logit)
        self.n_iteration = n_iteration

    def initial_logits(self, n: int, res_logit: float) -> list[float]:
        return [res_logit * (i == j) for i in range(n) for j in range(n)]

    def forward(self, logit_BTL: Tensor) -> Tensor:
        B, T, _ = logit_BTL.shape
        n = self.n_stream
        return sinkhorn(logit_BTL.reshape(-1, n, n), self.n_iteration).view(B, T, n, n)


class Permutations(Manifold):
    """N! logits, of the permutations; the identity is the first."""

    perm_RNN: Tensor

    def __init__(self, n_stream: int, res_logit: float) -> None:
        if n_stream > MAX_STREAM:
            raise ValueError(
                f"residual.n_stream must be <= {MAX_STREAM} with residual.manifold=permutations, which has n_stream! "
                f"permutations, got {n_stream}; choose another map"
            )
        super().__init__(n_stream, res_logit)
        orders = torch.tensor(list(permutations(range(n_stream))))
        self.register_buffer("perm_RNN", nn.functional.one_hot(orders, n_stream).float(), persistent=False)

    def initial_logits(self, n: int, res_logit: float) -> list[float]:
        # Each entry off the diagonal is the sum of (N - 1)! permutations' weights.
        return [res_logit + math.lgamma(n)] + [0.0] * (math.factorial(n) - 1)

    def forward(self, logit_BTL: Tensor) -> Tensor:
        blend_BTNN: Tensor = torch.tensordot(logit_BTL.softmax(-1), self.perm_RNN, dims=1)
        return blend_BTNN


class Cayley(Manifold):
    """N * (N - 1) / 2 logits, of the entries of K above its diagonal."""

    def initial_logits(self, n: int, res_logit: float) -> list[float]:
        return [0.0] * (n * (n - 1) // 2)

    def forward(self, logit_BTL: Tensor) -> Tensor:
        n, dtype = self.n_stream, torch.promote_types(logit_BTL.dtype, torch.float32)  # torch solves no narrower ones
        upper_BTNN = logit_BTL.new_zeros(*logit_BTL.shape[:2], n, n, dtype=dtype)
        row, column = torch.triu_indices(n, n, 1, device=logit_BTL.device)
        upper_BTNN[..., row, column] = logit_BTL.to(dtype)
        skew_BTNN = upper_BTNN - upper_BTNN.transpose(-1, -2)
        one_NN = torch.eye(n, dtype=dtype, device=logit_BTL.device)
        # I + K is always invertible; `solve` would wait for the device to report that it is.
        rotation_BTNN: Tensor = torch.linalg.solve_ex(one_NN + skew_BTNN, one_NN - skew_BTNN).result
        return rotation_BTNN.to(logit_BTL.dtype)


class Orthostochastic(Cayley):
    """N * (N - 1) / 2 logits, of the rotation whose entries are squared."""

    def initial_logits(self, n: int, res_logit: float) -> list[float]:
        # Q is about I - 2 K, so that the squares off the diagonal are about (2 k)^2.
        return [math.exp(-res_logit / 2) / 2] * (n * (n - 1) // 2)

    def forward(self, logit_BTL: Tensor) -> Tensor:
        return super().forward(logit_BTL).square()


def build_manifold(name: ManifoldName, n_stream: int, res_logit: float, n_iteration: int) -> Manifold:
    """Return the map called `name`; only sinkhorn iterates."""
    if name == "sinkhorn":
        return Sinkhorn(n_stream, res_logit, n_iteration)
    others: dict[str, Callable[[int, float], Manifold]] = {
        "permutations": Permutations,
        "cayley": Cayley,
        "orthostochastic": Orthostochastic,
    }
    return others[name](n_stream, res_logit)
