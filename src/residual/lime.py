"""LIMe: keys and values of attention are weighted sums over the heads of all layers so far.

    k_l[h] <- sum_{j <= l, g} R_l[h, j, g] k_j[g],   v_l with the same R_l    in every layer except the first
    x <- x + y

The sums are taken before any rotation of keys.

Source: Gerasimov et al., "Layer-Integrated Memory" (arXiv 2502.09245), section 3; corl-team/lime.
At init (R: identity for the own layer, uniform with variance 1 / fan-in for the others): not vanilla.
Shape letters: P pairs (layer, earlier or same layer), layer by layer, oldest first; J layers; E = T * K.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from src.bounds import NonNegativeFloat
from src.residual.base import ParamGroup, ResidualStrategy, Site, StreamSpec
from src.source import Source


class Memory(NamedTuple):
    """Stream, and the projected keys and values of the layers so far."""

    x_BTD: Tensor
    k_BHE: tuple[Tensor, ...]
    v_BHE: tuple[Tensor, ...]


class LIMe(ResidualStrategy[Memory]):
    """Routed keys and values; n_head^2 * (l + 1) parameters in layer l = 1.., no weight decay.

    Args:
        spec: the trunk, with at least two layers.
        lr: peak learning rate instead of `optimizer.lr` (0.01 in the source).
    """

    source = Source(
        "arXiv 2502.09245, section 3",
        "corl-team/lime",
        "424281209236",
        deviations=(
            "The router has no weight decay: the release reads a flag for it that its configuration does not define.",
            "Key and value projections start as the trunk's; the source draws them uniformly.",
        ),
    )
    taps_qkv: ClassVar[bool] = True

    removed_keys: ClassVar[Mapping[str, str]] = {
        "lr_scale": "is residual.lr since 0.3.0, a peak rate that does not follow optimizer.lr; a stored run continues "
        "with reslab 0.2.0"
    }
    width_readers = ("router_PHH",)

    def __init__(self, spec: StreamSpec, *, lr: NonNegativeFloat) -> None:
        super().__init__()
        if spec.n_block < 2:
            raise ValueError("residual=lime needs model.n_layer >= 2, got 1")
        self.lr = lr
        n_attn = sum(site.kind == "attn" for site in spec.sites)
        self.n_sources = list(range(2, n_attn + 1))
        self.router_PHH = nn.Parameter(torch.zeros(sum(self.n_sources), spec.n_head, spec.n_head))

    def reset(self) -> None:
        with torch.no_grad():
            for r_JHH in torch.split(self.router_PHH, self.n_sources):
                fan_in = r_JHH.shape[0] * r_JHH.shape[1]
                nn.init.uniform_(r_JHH, -((3 / fan_in) ** 0.5), (3 / fan_in) ** 0.5)
                nn.init.eye_(r_JHH[-1])

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup((self.router_PHH,), lr=self.lr)

    def begin(self, x0_BTD: Tensor) -> Memory:
        return Memory(x0_BTD, (), ())

    def read(self, state: Memory, site: Site) -> tuple[Tensor, Memory]:
        return state.x_BTD, state

    def tap_qkv(
        self, state: Memory, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        k_BHE, v_BHE = (*state.k_BHE, k_BHTK.flatten(2)), (*state.v_BHE, v_BHTK.flatten(2))
        state = state._replace(k_BHE=k_BHE, v_BHE=v_BHE)
        if len(k_BHE) == 1:
            return q_BHTK, k_BHTK, v_BHTK, state
        router_JHH = torch.split(self.router_PHH, self.n_sources)[len(k_BHE) - 2].to(k_BHTK.dtype)
        k, v = (_route(router_JHH, sources).view(k_BHTK.shape) for sources in (k_BHE, v_BHE))
        return q_BHTK, k, v, state

    def write(self, state: Memory, site: Site, y_BTD: Tensor) -> Memory:
        return state._replace(x_BTD=state.x_BTD + y_BTD)

    def end(self, state: Memory) -> Tensor:
        return state.x_BTD


def _route(router_JHH: Tensor, sources_BHE: tuple[Tensor, ...]) -> Tensor:
    total_BHE = router_JHH[0] @ sources_BHE[0]
    for r_HH, source_BHE in zip(router_JHH[1:], sources_BHE[1:], strict=True):
        total_BHE = torch.baddbmm(total_BHE, r_HH.expand(len(source_BHE), -1, -1), source_BHE)
    return total_BHE
