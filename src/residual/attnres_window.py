"""Attention residuals over a window: every sublayer attends over the embedding and the newest outputs.

    v_0 = x0,  v_i = y of the i-th sublayer
    h_k = sum_i softmax_i( w_k . RMSNorm_k(v_i) ) v_i      over v_0 and the newest W of v_1..v_k; at the end the same

RMSNorm_k has a learned gain, which folds into the query. With W >= S it is `attnres`.

Source: Kimi team, "Attention Residuals" (arXiv 2603.15031), section 5.3, an ablation ("sliding-window aggregation").
At init (w = 0): the uniform mean of these sources; not vanilla.
Shape letters: Q queries (sites 1..S-1, and the end); of `mixing`, K readers and J sources.
"""

import torch
from torch import Tensor

from src.bounds import PositiveFloat, PositiveInt
from src.kernels import depth_attention
from src.kernels.depth_attention import Sources
from src.residual.attnres import AttentionResiduals
from src.residual.base import Site, StreamSpec
from src.source import Source


class WindowAttentionResiduals(AttentionResiduals):
    """Attention over x0 and the newest outputs: 2 * D parameters a query (query, key gain); no weight decay.

    Args:
        spec: the trunk. The first site has one source and therefore no query.
        window: number W of outputs that a site attends over (8 in the source).
        eps: added to the mean square in the key norm.
    """

    source = Source("arXiv 2603.15031, section 5.3")

    def __init__(self, spec: StreamSpec, *, window: PositiveInt, eps: PositiveFloat) -> None:
        super().__init__(spec, eps=eps)
        self.window = window

    def begin(self, x0_BTD: Tensor) -> Sources:
        return depth_attention.open(x0_BTD, self.query_QD * self.key_gain_QD, self.eps, window=self.window)

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor:
        state = self.begin(x0_BTD)
        weight_KJ = x0_BTD.new_zeros(len(y_BTD) + 1, len(y_BTD) + 1)
        weight_KJ[0, 0] = 1.0
        for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True), start=1):
            state = self.write(state, site, output_BTD)
            first, *newest = depth_attention.average_weights(state, k - 1)
            weight_KJ[k, 0] = first
            weight_KJ[k, k + 1 - len(newest) : k + 1] = torch.stack(newest)
        return weight_KJ
