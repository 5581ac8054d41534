"""Parallel lanes: in the upper layers attention and MLP read separate streams and write to both.

    x <- x + y                                       below `start_layer`; there both lanes become x
    lane_j <- carry[k] * lane_j + write[k, j] * y    j = 0 (read by attention), 1 (read by the MLP)
    out = (lane_0 + lane_1) / 2

Source: openai/parameter-golf, pull request 1204 (record 2026-03-31, ParallelResiduals_MiniDepthRecurrence). It ports
KellerJordan/modded-nanogpt, pull request 230, where attention writes 1.5 to the MLP's lane, carries learn at 0.04 and
writes at 0.008 without weight decay, and the single-lane layers have learned carries and writes too.
At init (equal writes): one stream whose carry is `carry_init` in the upper layers, so vanilla if that is 1.
Shape letters: A sites from the first of `start_layer` on.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat, PositiveFloat
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import EMBEDDING_NORM, QK_NORM, Source


class Lanes(NamedTuple):
    """Lanes that attention and the MLP read: the same tensor below `start_layer`."""

    attn_BTD: Tensor
    mlp_BTD: Tensor


class ParallelLanes(ResidualStrategy[Lanes]):
    """Parallel lanes: 3 parameters for each site from `start_layer` on.

    Args:
        start_layer: first layer with two lanes (7 of 11); None takes the same share of the depth.
        carry_init: initial weight of a lane in its own update (sqrt(1.1)).
        write_init: initial weight of an output in a lane (1).
        attn_to_mlp_init: the same for attention's output in the MLP's lane (1; modded-nanogpt: 1.5).
        lr: peak learning rate (0.025; modded-nanogpt: 0.008); None: `optimizer.lr`.
        carry_lr_scale, write_lr_scale: factors on `lr` of carries and writes (1, 1; modded-nanogpt: 5, 1).
        weight_decay: weight decay of both (0.04; modded-nanogpt: 0).
    """

    source = Source(
        "parameter-golf pull request 1204; modded-nanogpt pull request 230",
        "openai/parameter-golf",
        "4908dc46f21e",
        deviations=(
            "Only the lanes of the record, without its U-Net skips, embedding shortcut and branch gains, so as to compare"
            " one rule.",
            EMBEDDING_NORM,
            QK_NORM,
        ),
    )

    may_skip: ClassVar[bool] = True

    added_keys: ClassVar[Mapping[str, object]] = {"lr": None, "weight_decay": 0.0}

    def __init__(
        self,
        spec: StreamSpec,
        *,
        start_layer: int | None,
        carry_init: float,
        write_init: float,
        attn_to_mlp_init: float,
        lr: PositiveFloat | None,
        carry_lr_scale: NonNegativeFloat,
        write_lr_scale: NonNegativeFloat,
        weight_decay: NonNegativeFloat,
    ) -> None:
        super().__init__()
        last = spec.n_layer - 1
        start = min(round(spec.n_layer * 7 / 11), last) if start_layer is None else start_layer
        if not 0 <= start <= last:
            raise ValueError(
                f"residual.start_layer must be >= 0 and <= {last}, got {start_layer}; use null for 7/11 of the depth"
            )
        first = next(site.index for site in spec.sites if site.layer >= start)
        active = spec.sites[first:]
        self.n_single = first
        self.carry_A = nn.Parameter(torch.full((len(active),), carry_init))
        self.write_A2 = nn.Parameter(torch.full((len(active), 2), write_init))
        with torch.no_grad():
            self.write_A2[[site.kind == "attn" for site in active], 1] = attn_to_mlp_init
        self.lr, self.lr_scales, self.weight_decay = lr, (carry_lr_scale, write_lr_scale), weight_decay

    def param_groups(self) -> Iterator[ParamGroup]:
        for param, lr_scale in zip((self.carry_A, self.write_A2), self.lr_scales, strict=True):
            yield ParamGroup((param,), lr_scale, lr=self.lr, weight_decay=self.weight_decay)

    def begin(self, x0_BTD: Tensor) -> Lanes:
        return Lanes(x0_BTD, x0_BTD)

    def inject(self, state: Lanes, site: Site, e_BTD: Tensor) -> tuple[Lanes, None]:
        return Lanes(*(x_BTD + e_BTD for x_BTD in state)), None

    def read(self, state: Lanes, site: Site) -> tuple[Tensor, Lanes]:
        return state.attn_BTD if site.kind == "attn" else state.mlp_BTD, state

    def write(self, state: Lanes, site: Site, y_BTD: Tensor) -> Lanes:
        row = site.index - self.n_single
        if row < 0:
            x_BTD = state.attn_BTD + y_BTD
            return Lanes(x_BTD, x_BTD)
        carry, writes = self.carry_A[row], self.write_A2[row].unbind()
        return Lanes(*(torch.addcmul(carry * x, w, y_BTD) for x, w in zip(state, writes, strict=True)))

    def end(self, state: Lanes) -> Tensor:
        return (state.attn_BTD + state.mlp_BTD) / 2

    def get_streams(self, state: Lanes) -> Tensor:
        return torch.stack(state, dim=2)
