"""MUDDFormer: each layer's query, key, value and residual are sums of all earlier streams, weighed by token.

    X_0 = x0,  X_{l+1} = the stream that layer l leaves
    s_c = sum_j w_l[c, j] X_j   for c = q, k, v, r, with weights from X_{l+1} (`dense_weights`)
    the next layer's projections read N(s_q), N(s_k), N(s_v), and its residual starts from s_r

Known to diverge at 24 layers; there `muddformer_prepost` is the stable form.

Source: Xiao et al., "MUDDFormer" (arXiv 2502.12170), section 2; Caiyun-AI/MUDDFormer.
At init (W2 = 0, a = 1 on the newest stream): vanilla.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from src.kernels.depth_attention.reference import weighted_sum
from src.residual.base import QKV, ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.families.mudd_weights import DenseWeights


class Ways(NamedTuple):
    """The residual, what the next attention reads (the residual itself in the first layer), the streams."""

    x_BTD: Tensor
    attn: Tensor | QKV
    depth_BTD: tuple[Tensor, ...]


class MUDDFormer(ResidualStrategy[Ways]):
    """D * G + G * C * J + C * J parameters a layer (J = l + 2, C = 4, G = C * J); weight decay on matrices.

    Args:
        spec: the trunk.
        eps: of the norm before W1.
    """

    init_equivalent = "vanilla"

    def __init__(self, spec: StreamSpec, *, eps: float) -> None:
        super().__init__()
        self.dense = DenseWeights(spec, newest_init=1.0, eps=eps)

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
        *qkv, r = (weighted_sum(weight_BTJ, depth_BTD) for weight_BTJ in self.dense(x_BTD, site.block))
        return Ways(r, QKV(*qkv) if qkv else r, depth_BTD)

    def end(self, state: Ways) -> Tensor:
        return state.x_BTD
