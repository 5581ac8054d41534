"""MUDDFormer with norms around the sums (PrePostDANorm), the form for deep models.

    X_0 = x0,  X_{l+1} = the stream after layer l,  n_j = RMSNorm_j(X_j)
    s_c = X_{l+1} + sum_j w_l[c, j] n_j                 for c = q, k, v
    s_r = X_{l+1} + RMSNorm_l(sum_j w_l[r, j] n_j)      the gain starts at 0.001

The weights are those of `muddformer` without a static start, with a gain on the norm before W1 and the tanh form of
GELU. Every layer, the first one too, has a norm for each of q, k and v.

Source: Xiao et al., "MUDDFormer" (arXiv 2502.12170), section 2.5, equation 10; Caiyun-AI/MUDDFormer, the JAX form.
At init (W2 = 0, a = 0, so the sums are 0): vanilla.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import NonNegativeInt, PositiveFloat
from src.kernels import depth_attention
from src.residual.base import QKV, ParamGroup, Site, StreamSpec
from src.residual.muddformer import MUDDFormer, Ways
from src.source import Source


class MUDDFormerPrePost(MUDDFormer):
    """Sums of normalized streams: the parameters of `muddformer`, 3 * D gains a layer and D for x0; all decayed.

    Args:
        spec: the trunk.
        post_gain_init: initial gain of the norm after the residual's sum (0.001 in the source).
        round_hidden: hidden units are rounded up to a multiple of it (64 in the source); 0 does not round.
        eps: added to the mean square in all its norms.
    """

    source = Source(
        "arXiv 2502.12170, section 2.5",
        "Caiyun-AI/MUDDFormer",
        "fc067b274a5f",
        deviations=(
            "MLPs have the trunk's width in every layer; the source widens them from 0.5 to 1.5 times with depth.",
        ),
        changed_in="0.3.0",
    )
    newest_init = 0.0
    has_gain = True
    gelu = "tanh"

    def __init__(
        self, spec: StreamSpec, *, post_gain_init: float, round_hidden: NonNegativeInt, eps: PositiveFloat
    ) -> None:
        super().__init__(spec, round_hidden=round_hidden, eps=eps)
        self.eps = eps
        self.pre_gain_JD = nn.Parameter(torch.ones(spec.n_block + 1, spec.n_embd))
        self.post_gain_LD = nn.Parameter(torch.full((spec.n_block, spec.n_embd), post_gain_init))

    def norms_each_view(self, site: Site) -> bool:
        return True

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup(tuple(self.parameters()), decay=True)

    def begin(self, x0_BTD: Tensor) -> Ways:
        return Ways(x0_BTD, x0_BTD, (self._norm(x0_BTD, self.pre_gain_JD[0]),))

    def write(self, state: Ways, site: Site, y_BTD: Tensor) -> Ways:
        x_BTD = state.x_BTD + y_BTD
        if not site.closes_block:
            return state._replace(x_BTD=x_BTD)
        block = site.block
        normed_BTD = (*state.depth_BTD, self._norm(x_BTD, self.pre_gain_JD[block + 1]))
        weights = self.dense(x_BTD, block)
        *qkv, r = (depth_attention.sum_by_token(weight_BTJ, normed_BTD) for weight_BTJ in weights)
        r_BTD = x_BTD + self._norm(r, self.post_gain_LD[block])
        return Ways(r_BTD, QKV(*(x_BTD + s for s in qkv)) if qkv else r_BTD, normed_BTD)

    def _norm(self, x_BTD: Tensor, gain_D: Tensor) -> Tensor:
        return F.rms_norm(x_BTD, gain_D.shape, gain_D, self.eps)
