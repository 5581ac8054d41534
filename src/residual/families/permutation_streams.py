"""Shared base of mHC-lite and KromHC: N streams that a token's blend of permutations mixes.

    v = gain * vec(H) / rms(vec(H));   [pre | post | res] = scale * (phi v) + bias
    u = sigmoid(pre) . H;   H <- R^T H + 2 sigmoid(post)^T y,  R = sum_r w_r P_r;   out = sum_i norm(H_i)

The weights w, which sum to 1, are what the methods differ in: w = weigh(res). R is exactly doubly stochastic. The final
norm applies to every stream before they are summed, so that each has an equal vote, however large it is.

Source: FFTYYY/mhc-lite and wz1119/KromHC, which share everything else.
Shape letters: N streams, R permutations, L logits of the mixing, C = 2 * N + L columns of phi, V = N * D.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from src.kernels import hyper_streams
from src.kernels.hyper_streams import SiteWeights, Streams
from src.residual.base import ParamGroup, Site, StreamSpec
from src.residual.families.hyper_connections import WeightedStreams


class PermutationStreams(WeightedStreams):
    """N streams mixed by permutations: (C + 1) * V + C + 3 parameters a site, lr x 1; only phi has weight decay.

    Args:
        spec: the trunk.
        orders: the R permutations, each a tuple of N streams.
        res_logits: initial biases of the L logits of the mixing.
        scale_init: initial factor of the dynamic part.
        gate_logit: initial logit of one stream in a site's read and write, its negative for the others.
        eps: added to the mean square of vec(H).
    """

    perm_RNN: Tensor
    width_readers = ("phi_SCV",)

    def __init__(
        self,
        spec: StreamSpec,
        orders: list[tuple[int, ...]],
        res_logits: list[float],
        *,
        scale_init: float,
        gate_logit: float,
        eps: float,
    ) -> None:
        super().__init__(n_stream := len(orders[0]))
        self.gate_logit, self.eps = gate_logit, eps
        perm_RNN = nn.functional.one_hot(torch.tensor(orders), n_stream).float()
        self.register_buffer("perm_RNN", perm_RNN, persistent=False)
        width, n_column = n_stream * spec.n_embd, 2 * n_stream + len(res_logits)
        self.gain_SV = nn.Parameter(torch.ones(spec.n_site, width))
        self.phi_SCV = nn.Parameter(torch.zeros(spec.n_site, n_column, width))
        self.scale_S3 = nn.Parameter(torch.full((spec.n_site, 3), scale_init))  # of pre, post, res
        gates = [0.0] * (2 * n_stream)  # set by `reset`
        self.bias_SC = nn.Parameter(torch.tensor([*gates, *res_logits]).repeat(spec.n_site, 1))
        self.norm = spec.norm()

    @abstractmethod
    def weigh(self, logit_BTL: Tensor) -> Tensor:
        """Return the weights [B, T, R] of the permutations."""

    def reset(self) -> None:
        n, n_site = self.n_stream, len(self.bias_SC)
        gate_NN = torch.full((n, n), -self.gate_logit).fill_diagonal_(self.gate_logit)
        # Each site draws the stream that it mostly reads and writes.
        with torch.no_grad():
            self.bias_SC[:, : 2 * n] = gate_NN[torch.randint(n, (n_site,))].repeat(1, 2)

    def owns_norm(self, site: Site | None) -> bool:
        return site is None

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.phi_SCV,), decay=True)
        yield ParamGroup((self.gain_SV, self.scale_S3, self.bias_SC, *self.norm.parameters()))

    def site_weights(self, k: int, h_BTND: Tensor) -> SiteWeights:
        phi_CV = self.phi_SCV[k] * self.gain_SV[k]
        weights = hyper_streams.project(h_BTND, phi_CV, self.scale_S3[k], self.bias_SC[k], self.eps)
        res_BTNN = torch.tensordot(self.weigh(weights.mixing_BTR), self.perm_RNN, dims=1)
        return SiteWeights(torch.cat((weights.pre_BTN.unsqueeze(-1), res_BTNN), dim=-1), weights.post_BTN)

    def end(self, state: Streams) -> Tensor:
        normed_BTND: Tensor = self.norm(hyper_streams.settle(state))
        return normed_BTND.sum(2)

    def end_weights(self, h_BTND: Tensor) -> Tensor:
        # The norm divides every stream by its size, up to its gain.
        return h_BTND.square().mean(-1).clamp_min(self.eps).rsqrt()
