"""Weights of the MUDD strategies: those of a token over all earlier layers' streams, for each way.

    w_l = W2_l GELU(W1_l RMS(X_{l+1})) + a_l,  of shape [ways, l + 2]

Ways are the query, key, value and residual of the next layer, and the residual alone after the last, whose
hidden layer is four times as wide for it.

Source: Xiao et al., "MUDDFormer" (arXiv 2502.12170), section 2; Caiyun-AI/MUDDFormer.
Shape letters: C ways, J streams so far, G hidden units, P all pairs of a way and a stream, layer by layer.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.residual.base import ParamGroup, StreamSpec

N_WAY = 4  # q, k, v, residual
LAST_WIDTH = 4


class DenseWeights(nn.Module):
    """Network that maps a stream to weights: D * G + G * C * J parameters a layer with weight decay, C * J without."""

    def __init__(self, spec: StreamSpec, newest_init: float, eps: float) -> None:
        super().__init__()
        self.eps = eps
        last = spec.n_block - 1
        self.n_ways = [N_WAY if block < last else 1 for block in range(spec.n_block)]
        n_weights = [ways * (block + 2) for block, ways in enumerate(self.n_ways)]
        hidden = [n if block < last else LAST_WIDTH * n for block, n in enumerate(n_weights)]
        self.w1 = nn.ParameterList(nn.Parameter(torch.zeros(g, spec.n_embd)) for g in hidden)
        self.w2 = nn.ParameterList(nn.Parameter(torch.zeros(n, g)) for n, g in zip(n_weights, hidden, strict=True))
        self.n_weights = n_weights
        self.a_P = nn.Parameter(torch.zeros(sum(n_weights)))
        with torch.no_grad():
            for block, a in enumerate(torch.split(self.a_P, n_weights)):
                a.view(self.n_ways[block], -1)[:, -1] = newest_init

    def reset(self) -> None:
        """Draw W1 from N(0, 1 / D); W2 stays zero."""
        for w1_GD in self.w1:
            nn.init.normal_(w1_GD, std=w1_GD.shape[1] ** -0.5)

    def param_groups(self) -> Iterator[ParamGroup]:
        """Yield the matrices with weight decay and the static weights without."""
        yield ParamGroup((*self.w1, *self.w2), decay=True)
        yield ParamGroup((self.a_P,))

    def forward(self, x_BTD: Tensor, block: int) -> tuple[Tensor, ...]:
        """Return the weights [B, T, J] of each way from the newest stream [B, T, D]."""
        hidden_BTG = F.gelu(F.linear(F.rms_norm(x_BTD, x_BTD.shape[-1:], None, self.eps), self.w1[block]))
        static = torch.split(self.a_P, self.n_weights)[block]
        return F.linear(hidden_BTG, self.w2[block], static).chunk(self.n_ways[block], dim=-1)
