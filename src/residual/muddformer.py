"""MUDDFormer: each layer's query, key, value and residual are sums of all earlier streams, weighted by token.

    X_0 = x0,  X_{l+1} = the stream after layer l
    s_c = sum_j w_l[c, j] X_j   for c = q, k, v, r, with weights from X_{l+1} (`mudd_weights`)
    the next layer's projections read N(s_q), N(s_k), N(s_v), and its residual starts from s_r

It is known to diverge at 24 layers; `muddformer_prepost` is the stable form there.

Source: Xiao et al., "MUDDFormer" (arXiv 2502.12170), section 2; Caiyun-AI/MUDDFormer.
At init (W2 = 0, a = 1 on the newest stream): vanilla.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor

from src.bounds import PositiveFloat
from src.kernels import depth_attention
from src.residual.base import QKV, ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.families.mudd_weights import DenseWeights


class Ways(NamedTuple):
    """Residual, inputs of the next attention (the residual itself in the first layer), streams to sum so far."""

    x_BTD: Tensor
    attn: Tensor | QKV
    depth_BTD: tuple[Tensor, ...]


class MUDDFormer(ResidualStrategy[Ways]):
    """Sums for four ways: D * G + G * C * J + C * J parameters a layer, J = l + 2, C = 4, G = C * J; decay on matrices.

    Args:
        eps: added to the mean square in the norm before W1.
    """

    init_equivalent = "vanilla"
    newest_init: ClassVar[float] = 1.0  # static weight of the newest stream

    def __init__(self, spec: StreamSpec, *, eps: PositiveFloat) -> None:
        super().__init__()
        self.dense = DenseWeights(spec, newest_init=self.newest_init, eps=eps)

    def reset(self) -> None:
        self.dense.reset()

    def param_groups(self) -> Iterator[ParamGroup]:
        return self.dense.param_groups()

    def begin(self, x0_BTD: Tensor) -> Ways:
        return Ways(x0_BTD, x0_BTD, (x0_BTD,))

    def read(self, state: Ways, site: Site) -> tuple[Tensor | QKV, Ways]:
        return state.attn if site.kind == "attn" else state.x_BTD, state

    def write(self, state: Ways, site: Site, y_BTD: Tensor) -> Ways:
        x_BTD = state.x_BTD + y_BTD
        if not site.closes_block:
            return state._replace(x_BTD=x_BTD)
        depth_BTD = (*state.depth_BTD, x_BTD)
        weights = self.dense(x_BTD, site.block)
        *qkv, r = (depth_attention.sum_by_token(weight_BTJ, depth_BTD) for weight_BTJ in weights)
        return Ways(r, QKV(*qkv) if qkv else r, depth_BTD)

    def end(self, state: Ways) -> Tensor:
        return state.x_BTD
