"""Two-site MUDD: dense connections with weights of each token, before the last layer and before the head only.

    f_i(x) = scale (W2_i GELU(W1_i x) + b_i)
    before the last layer, p = x:   c = f_0(p);   v <- v + c_1 x_0 + c_2 x_l + c_3 p    in its attention, by channel
                                    x <- p + c_4 x_0 + c_5 x_l + c_6 p;   its attention reads p
    at the end:                     c = f_1(x);   out = x + c_1 x_0 + c_2 x_l + c_3 p + c_4 x_e
    x <- x + y    at every site;   x_e, x_l: the stream after layers `early_layer` and `late_layer`

Weights depend on the stream itself, without a norm.

Source: KellerJordan/modded-nanogpt, train_gpt.py, records 81 and 85, after Xiao et al., "MUDDFormer" (arXiv 2502.12170).
At init (W2 = 0, b = 0 except for x_l at the end): not vanilla, it subtracts half of x_l (vanilla with `backout_init` 0).
Shape letters: G hidden units, C weights of both sites.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from src.kernels import depth_attention
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import EMBEDDING_NORM, QK_NORM, Source

N_WEIGHT = (6, 4)  # before the last layer: three for v and three for the residual; at the end: four
EARLY, LATE = 3 / 11, 7 / 11  # of the depth, in the source


class Snapshots(NamedTuple):
    """Stream, its values kept for the two sites, and the addition to the last layer's values once it is known."""

    x_BTD: Tensor
    first_BTD: Tensor
    early_BTD: Tensor
    late_BTD: Tensor
    last_BTD: Tensor
    value_BTD: tuple[Tensor, ...]


class MUDDTwoSite(ResidualStrategy[Snapshots]):
    """Weights of two sites; 2 * G * D + 10 * (G + 1) parameters, no weight decay.

    Args:
        spec: the trunk, with at least two layers.
        hidden: hidden units G (64 in the source).
        scale: factor on all weights (0.1 in the source).
        backout_init: share of x_l that the end subtracts at first (0.5 in the source).
        early_layer: layer after which x_e is kept, before the last; None selects 3/11 of the depth (3 of 11).
        late_layer: layer after which x_l is kept, before the last; None selects 7/11 of the depth (7 of 11).
        lr: peak learning rate instead of `optimizer.lr` (0.002 in the source).
    """

    source = Source(
        "arXiv 2502.12170",
        "KellerJordan/modded-nanogpt",
        "f411b3d346aa",
        deviations=(
            "Weights for value embeddings, x0, bigrams and residual scales are left out, since other axes and "
            "strategies have those parts.",
            "Attention of the last layers reads the stream, not the stream after layer 7, which is `cached_attn_read`.",
            "There is no weight decay; the source's is 1e-5 at the peak rate, and only where it agrees with the "
            "gradient's sign.",
            "Adam has the run's betas, not 0.9 and 0.99, and acts in every step, not in every second one.",
            "The peak rate is the source's base rate, which its stages multiply by up to 1.5.",
            EMBEDDING_NORM,
            QK_NORM,
        ),
    )
    taps_qkv: ClassVar[bool] = True
    width_readers = ("w1_2GD",)

    def __init__(
        self,
        spec: StreamSpec,
        *,
        hidden: PositiveInt,
        scale: PositiveFloat,
        backout_init: float,
        early_layer: int | None,
        late_layer: int | None,
        lr: NonNegativeFloat,
    ) -> None:
        super().__init__()
        self.last = spec.n_block - 1
        if self.last < 1:
            raise ValueError("residual=mudd_two_site needs model.n_layer >= 2, got 1")
        for key, layer in (("early_layer", early_layer), ("late_layer", late_layer)):
            if layer is not None and not 0 <= layer < self.last:
                raise ValueError(f"residual.{key} must be between 0 and {self.last - 1}, got {layer}")
        self.early = min(round(EARLY * spec.n_block), self.last - 1) if early_layer is None else early_layer
        self.late = min(round(LATE * spec.n_block), self.last - 1) if late_layer is None else late_layer
        self.scale, self.lr = scale, lr
        self.w1_2GD = nn.Parameter(torch.zeros(2, hidden, spec.n_embd))
        self.w2_CG = nn.Parameter(torch.zeros(sum(N_WEIGHT), hidden))
        self.b_C = nn.Parameter(torch.zeros(sum(N_WEIGHT)))
        with torch.no_grad():
            self.b_C[N_WEIGHT[0] + 1] = -backout_init / scale

    def reset(self) -> None:
        nn.init.uniform_(self.w1_2GD, -(self.w1_2GD.shape[-1] ** -0.5), self.w1_2GD.shape[-1] ** -0.5)

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup(tuple(self.parameters()), lr=self.lr)

    def begin(self, x0_BTD: Tensor) -> Snapshots:
        return Snapshots(x0_BTD, x0_BTD, x0_BTD, x0_BTD, x0_BTD, ())

    def inject(self, state: Snapshots, site: Site, e_BTD: Tensor) -> tuple[Snapshots, None]:
        x_BTD = state.x_BTD + e_BTD
        return state._replace(x_BTD=x_BTD, first_BTD=x_BTD if site.index == 0 else state.first_BTD), None

    def read(self, state: Snapshots, site: Site) -> tuple[Tensor, Snapshots]:
        p_BTD = state.x_BTD
        if not (site.opens_block and site.block == self.last):
            return p_BTD, state
        value_BT3, stream_BT3 = self._weights(0, p_BTD).chunk(2, dim=-1)
        sources = state.first_BTD, state.late_BTD, p_BTD
        value_BTD = depth_attention.sum_by_token(value_BT3, sources)
        x_BTD = p_BTD + depth_attention.sum_by_token(stream_BT3, sources)
        return p_BTD, state._replace(x_BTD=x_BTD, last_BTD=p_BTD, value_BTD=(value_BTD,))

    def tap_qkv(
        self, state: Snapshots, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Snapshots]:
        for value_BTD in state.value_BTD:
            B, H, T, K = v_BHTK.shape
            v_BHTK = v_BHTK + value_BTD.view(B, T, H, K).transpose(1, 2).to(v_BHTK.dtype)
        return q_BHTK, k_BHTK, v_BHTK, state

    def write(self, state: Snapshots, site: Site, y_BTD: Tensor) -> Snapshots:
        x_BTD = state.x_BTD + y_BTD
        state = state._replace(x_BTD=x_BTD)
        if site.closes_block and site.block == self.early:
            state = state._replace(early_BTD=x_BTD)
        if site.closes_block and site.block == self.late:
            state = state._replace(late_BTD=x_BTD)
        return state

    def end(self, state: Snapshots) -> Tensor:
        sources = state.first_BTD, state.late_BTD, state.last_BTD, state.early_BTD
        return state.x_BTD + depth_attention.sum_by_token(self._weights(1, state.x_BTD), sources)

    def _weights(self, place: int, x_BTD: Tensor) -> Tensor:
        """Return the weights of one of the two sites, [B, T, 6] or [B, T, 4]."""
        w2_CG, b_C = (torch.split(p, [*N_WEIGHT])[place] for p in (self.w2_CG, self.b_C))
        return self.scale * F.linear(F.gelu(F.linear(x_BTD, self.w1_2GD[place])), w2_CG, b_C)
