"""Cached attention read: attention of the last layers reads the stream as it was before them.

    c = x before the last `late_layers` layers
    x <- x + Attn(N(c));  x <- x + MLP(N(x))    in those layers;  elsewhere vanilla

What the late MLPs predict no longer passes through attention. It is what was left of two lanes there
(`parallel_lanes`) once attention's lane took no more writes.

Source: KellerJordan/modded-nanogpt, pull request 241 (there together with `backout`, from the same c).
At init: not vanilla, by what the late attention reads (with `late_layers` 1 it always is).
"""

from typing import ClassVar, NamedTuple

from torch import Tensor

from src.residual.base import ResidualStrategy, Site, StreamSpec


class CachedState(NamedTuple):
    """The stream, and what attention reads (the stream itself before the late layers)."""

    x_BTD: Tensor
    attn_BTD: Tensor


class CachedAttentionRead(ResidualStrategy[CachedState]):
    """No parameters.

    Args:
        spec: the trunk; only `n_layer` is used.
        late_layers: layers whose attention reads the cache (3 of 11 in the source); None takes that share of
            the depth, at least 2.
    """

    may_skip: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec, *, late_layers: int | None) -> None:
        super().__init__()
        late = min(max(2, round(spec.n_layer * 3 / 11)), spec.n_layer) if late_layers is None else late_layers
        if not 1 <= late <= spec.n_layer:
            raise ValueError(
                f"residual.late_layers must be between 1 and {spec.n_layer}, got {late_layers}; "
                "null takes 3/11 of the depth"
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
