"""MUDDFormer: each layer's query, key, value and residual are sums of all earlier streams, weighted by token.

    X_0 = x0,  X_{l+1} = the stream after layer l
    s_c = sum_j w_l[c, j] X_j   for c = q, k, v, r, with weights from X_{l+1} (`mudd_weights`)
    the next layer's projections read N_q(s_q), N_k(s_k), N_v(s_v), and its residual starts from s_r

The first layer has a single norm. `muddformer_prepost` is the form of the deep models.

Source: Xiao et al., "MUDDFormer" (arXiv 2502.12170), section 2; Caiyun-AI/MUDDFormer, the PyTorch form.
At init (W2 = 0, a = 1 on the newest stream): vanilla.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor

from src.bounds import NonNegativeInt, PositiveFloat
from src.kernels import depth_attention
from src.residual.base import QKV, ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.families.mudd_weights import DenseWeights
from src.source import QK_NORM, Source


class Ways(NamedTuple):
    """Residual, inputs of the next attention (the residual itself in the first layer), streams to sum so far."""

    x_BTD: Tensor
    attn: Tensor | QKV
    depth_BTD: tuple[Tensor, ...]


class MUDDFormer(ResidualStrategy[Ways]):
    """Sums for four ways: D * G + G * C * J + C * J parameters a layer, J = l + 2, C = 4; all have weight decay.

    The trunk has two more norms a layer for them. G is C * J, rounded up to a multiple of `round_hidden`.

    Args:
        spec: the trunk.
        round_hidden: hidden units are rounded up to a multiple of it (64 in the source); 0 does not round.
        eps: added to the mean square in the norm before W1.
    """

    source = Source(
        "arXiv 2502.12170, section 2",
        "Caiyun-AI/MUDDFormer",
        "fc067b274a5f",
        deviations=(
            "MLPs have the trunk's width in every layer; the source widens them from 0.5 to 1.5 times with depth.",
            QK_NORM,
        ),
        changed_in="0.3.0",
    )
    init_equivalent = "vanilla"
    newest_init: ClassVar[float] = 1.0  # static weight of the newest stream
    has_gain: ClassVar[bool] = False  # of the norm before W1
    gelu: ClassVar[str] = "none"

    def __init__(self, spec: StreamSpec, *, round_hidden: NonNegativeInt, eps: PositiveFloat) -> None:
        super().__init__()
        self.dense = DenseWeights(
            spec,
            newest_init=self.newest_init,
            round_hidden=round_hidden,
            has_gain=self.has_gain,
            gelu=self.gelu,
            eps=eps,
        )

    def norms_each_view(self, site: Site) -> bool:
        return site.layer > 0

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
