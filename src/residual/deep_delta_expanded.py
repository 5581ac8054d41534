"""Deep Delta Learning with an expanded state: N values per channel, read by mixing, rewritten along the outputs.

    X[n] = sum_s e[n, s] * x0_{t-s}                 embedding convolution over the last E tokens, elementwise
    u = sum_n m_l[n] * X[n];   m_l = w_l (*) r_l    elementwise; one mix per layer, and one at the end
    c = N_k(u);   y = F_k(c);   beta = 2 sigmoid(a_k . c + b_k);   v = 4 sigmoid(W_k u + w_k)
    d = y / sqrt(|y|^2 + eps^2);   X <- X + beta (v - X d) d^T

The mix is the source's: a convolution over the N values with N taps w_l per channel and zero padding, whose results are
summed with weights r_l. Both are linear, so that their composition m_l [N, D] is computed once per site.

Source: Zhang et al., "Deep Delta Learning" (arXiv 2601.00417), section 3.2 and appendix A.2, DDL-CC;
yifanzhang-pro/deep-delta-learning (`DDL-gpt-mha-rope-CC-EC.py`).
At init (X[n] = x0, r = 1 / N): not vanilla.
Shape letters: N value channels (d_v in the source), E taps of the embedding convolution, P mixes: L + 1.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import Count, PositiveFloat, StreamCount
from src.residual.base import Site, StreamSpec
from src.residual.families.delta_rule import RATES, Delta, DeltaRule
from src.source import QK_NORM, Source


class DeepDeltaExpanded(DeltaRule):
    """Rewritten expanded state; (N + 1) * (D + 1) parameters per site, N * (D + 1) per mix, N * D * E in the embedding.

    Matrices have weight decay; norms replace the trunk's.

    Args:
        n_value: number N of value channels, at least 2 (4 in the source).
        n_tap: number E of taps of the embedding convolution (4 in the source).
        beta_init: initial step beta, > 0 and < 2 (1 in the source).
        value_scale: bound of the target v (4 in the source).
        eps: length of an output below which its direction is shorter than 1 (1e-5 in the source).
    """

    source: ClassVar[Source] = Source(
        "arXiv 2601.00417, section 3.2",
        "yifanzhang-pro/deep-delta-learning",
        "2b55f2511502",
        deviations=(RATES, QK_NORM),
    )

    def __init__(
        self,
        spec: StreamSpec,
        *,
        n_value: StreamCount,
        n_tap: Count,
        beta_init: float,
        value_scale: PositiveFloat,
        eps: PositiveFloat,
    ) -> None:
        super().__init__(spec, n_value, beta_init, value_scale, eps)
        self.embed_END = nn.Parameter(torch.zeros(n_tap, n_value, spec.n_embd))
        self.mix_PND = nn.Parameter(torch.zeros(spec.n_layer + 1, n_value, spec.n_embd))
        self.pool_PN = nn.Parameter(torch.full((spec.n_layer + 1, n_value), 1 / n_value))

    def reset(self) -> None:
        super().reset()
        nn.init.normal_(self.mix_PND, std=0.5 * self.mix_PND.shape[-1] ** -0.5)
        with torch.no_grad():
            self.embed_END[0] = 1.0

    def matrices(self) -> tuple[nn.Parameter, ...]:
        return *super().matrices(), self.embed_END, self.mix_PND

    def begin(self, x0_BTD: Tensor) -> Delta:
        x_BTND = x0_BTD.unsqueeze(2) * self.embed_END[0]
        for lag, weight_ND in enumerate(self.embed_END[1:], start=1):
            earlier_BTD = F.pad(x0_BTD, (0, 0, lag, 0))[:, : x0_BTD.shape[1]]
            x_BTND = torch.addcmul(x_BTND, earlier_BTD.unsqueeze(2), weight_ND)
        return Delta(x_BTND, ())

    def compress(self, x_BTND: Tensor, site: Site | None) -> Tensor:
        row = -1 if site is None else site.layer
        # x = sum_i pool[i] conv(H)[i] with conv(H)[i] = sum_m mix[m] * H[i + m - left], that is
        # x = sum_n H[n] * sum_m toeplitz[n, m] mix[m] with toeplitz[n, m] = pool[n + left - m], 0 outside.
        n_value = x_BTND.shape[2]
        left = (n_value - 1) // 2
        pool_N = F.pad(self.pool_PN[row], (n_value - 1 - left, left))
        toeplitz_NN = pool_N.unfold(0, n_value, 1).flip(1)
        return (x_BTND * (toeplitz_NN @ self.mix_PND[row])).sum(2)
