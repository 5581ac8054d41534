"""Cached attention read: attention of the last layers reads the stream from before these layers.

    c = x before the last `late_layers` layers
    x <- x + Attn(N(c));  x <- x + MLP(N(x))    in those layers;  elsewhere vanilla

Outputs of the late MLPs do not pass through attention again. The source derives it from two lanes
(`parallel_lanes`) by removing the writes to the attention lane.

Source: KellerJordan/modded-nanogpt, pull request 241, train_gpt.py (there combined with `backout` of the same c).
At init: not vanilla, since late attention reads c (with `late_layers` 1: always vanilla).
"""

from typing import ClassVar, NamedTuple

from torch import Tensor

from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.source import EMBEDDING_NORM, QK_NORM, Source


class CachedState(NamedTuple):
    """Stream, and the input of attention (the stream itself before the late layers)."""

    x_BTD: Tensor
    attn_BTD: Tensor


class CachedAttentionRead(ResidualStrategy[CachedState]):
    """No parameters.

    Args:
        late_layers: number of layers whose attention reads c, in [1, n_layer] (3 of 11 in the source); None selects
            the same share of the depth, at least 2.
    """

    source = Source(
        "modded-nanogpt pull request 241, record 2026-03-06",
        "KellerJordan/modded-nanogpt",
        "81730c3057a0",
        deviations=(
            "Only the cached read of the record, without its learned carries and writes, embedding shortcut and backout"
            " of the same activation, so as to compare one rule.",
            EMBEDDING_NORM,
            QK_NORM,
        ),
    )

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, late_layers: int | None) -> None:
        super().__init__()
        late = min(max(2, round(spec.n_layer * 3 / 11)), spec.n_layer) if late_layers is None else late_layers
        if not 1 <= late <= spec.n_layer:
            raise ValueError(
                f"residual.late_layers must be between 1 and {spec.n_layer}, got {late_layers}; "
                "null selects 3/11 of the depth"
            )
        self.first_late = spec.n_layer - late

    def begin(self, x0_BTD: Tensor) -> CachedState:
        return CachedState(x0_BTD, x0_BTD)

    def inject(self, state: CachedState, site: Site, e_BTD: Tensor) -> tuple[CachedState, None]:
        x_BTD = state.x_BTD + e_BTD
        return CachedState(x_BTD, x_BTD if site.layer <= self.first_late else state.attn_BTD), None

    def read(self, state: CachedState, site: Site) -> tuple[Tensor, CachedState]:
        return state.attn_BTD if site.kind == "attn" else state.x_BTD, state

    def write(self, state: CachedState, site: Site, y_BTD: Tensor) -> CachedState:
        x_BTD = state.x_BTD + y_BTD
        return CachedState(x_BTD, x_BTD if site.layer < self.first_late else state.attn_BTD)

    def end(self, state: CachedState) -> Tensor:
        return state.x_BTD
