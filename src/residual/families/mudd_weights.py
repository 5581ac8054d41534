"""Weights of the MUDD strategies: those of a token over all earlier layers' streams, for each way.

    w_l = W2_l GELU(W1_l N(X_{l+1})) + a_l,  of shape [ways, l + 2]          N: RMSNorm, with a gain or without one

Ways are the query, key, value and residual of the next layer, and the residual alone after the last, whose
hidden layer is four times as wide for it. Hidden layers have G = C * J units, rounded up to the next multiple of
`round_hidden`: one more is added where G is a multiple, as in the source.

Source: Xiao et al., "MUDDFormer" (arXiv 2502.12170), section 2; Caiyun-AI/MUDDFormer.
Shape letters: C ways, J streams so far, G hidden units, P all pairs of a way and a stream, layer by layer.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.kernels import depth_attention
from src.residual.base import ParamGroup, StreamSpec

N_WAY = 4  # q, k, v, residual
LAST_WIDTH = 4


class DenseWeights(nn.Module):
    """Network that maps a stream to weights: D * G + G * C * J + C * J parameters a layer, and D with a gain.

    All have weight decay, as in the source, whose optimizer decays every parameter.

    Args:
        spec: the trunk.
        newest_init: initial static weight of the newest stream.
        round_hidden: hidden units are rounded up to a multiple of it (64 in the source); 0 does not round.
        has_gain: the norm before W1 has a gain.
        gelu: form of GELU, `none` (exact) or `tanh`.
        eps: added to the mean square in the norm.
    """

    width_readers = ("w1",)

    def __init__(
        self, spec: StreamSpec, *, newest_init: float, round_hidden: int, has_gain: bool, gelu: str, eps: float
    ) -> None:
        super().__init__()
        self.gelu, self.eps = gelu, eps
        last = spec.n_block - 1
        self.n_ways = [N_WAY if block < last else 1 for block in range(spec.n_block)]
        self.n_weights = [ways * (block + 2) for block, ways in enumerate(self.n_ways)]
        hidden = [n if block < last else LAST_WIDTH * n for block, n in enumerate(self.n_weights)]
        if round_hidden:
            hidden = [(g // round_hidden + 1) * round_hidden for g in hidden]
        self.w1 = nn.ParameterList(nn.Parameter(torch.zeros(g, spec.n_embd)) for g in hidden)
        self.w2 = nn.ParameterList(nn.Parameter(torch.zeros(n, g)) for n, g in zip(self.n_weights, hidden, strict=True))
        self.gain_LD = nn.Parameter(torch.ones(spec.n_block, spec.n_embd)) if has_gain else None
        self.a_P = nn.Parameter(torch.zeros(sum(self.n_weights)))
        with torch.no_grad():
            for block, a in enumerate(torch.split(self.a_P, self.n_weights)):
                a.view(self.n_ways[block], -1)[:, -1] = newest_init

    def reset(self) -> None:
        """Draw W1 from N(0, 1 / D); W2 stays zero."""
        for w1_GD in self.w1:
            nn.init.normal_(w1_GD, std=w1_GD.shape[1] ** -0.5)

    def param_groups(self) -> Iterator[ParamGroup]:
        """Yield all parameters, with weight decay."""
        yield ParamGroup(tuple(self.parameters()), decay=True)

    def forward(self, x_BTD: Tensor, block: int) -> tuple[Tensor, ...]:
        """Return the weights [B, T, J] of each way from the newest stream [B, T, D]."""
        w1_GD = self.w1[block] if self.gain_LD is None else self.w1[block] * self.gain_LD[block]
        hidden_BTG = F.gelu(depth_attention.scores(x_BTD, w1_GD, self.eps), approximate=self.gelu)
        static = torch.split(self.a_P, self.n_weights)[block]
        return F.linear(hidden_BTG, self.w2[block], static).chunk(self.n_ways[block], dim=-1)
