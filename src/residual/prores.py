"""ProRes: branches are let in over a warm-up, the shallow layers' first.

    x <- x + alpha[l](t) * F_k(N_k(x))                              scaled=sublayer, both sublayers of layer l
    x <- x + alpha[l](t) * (Block_l(x) - x)                         scaled=block, the benchmark's form

t is the optimizer step; alpha is not learned (`prores_schedules`).

Source: dandingsky/ProRes (arXiv 2603.05369); MLS-Bench llm-pretrain-residual, baseline `prores`.
At init (t = 0, alpha 0 under the default schedule): the identity, so that the sublayers' gradients are 0 in
the first step; after the warm-up, vanilla.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.residual.prores_schedules import SCHEDULES


class ProResState(NamedTuple):
    """What the sublayers of the layer under way read, and what leaves it (one tensor where scaled=sublayer)."""

    inner_BTD: Tensor
    outer_BTD: Tensor


class ProRes(ResidualStrategy[ProResState]):
    """No parameters; a buffer of n_layer factors, filled once an optimizer step, 1 where none was taken.

    Args:
        spec: the trunk; only `n_layer` is used.
        schedule: a name in `prores_schedules.SCHEDULES` (linear in the source).
        warmup_fraction: of the run, until the last layer is whole (24,000 of 100,000 steps in the source).
        warmup_steps: the same in optimizer steps; exactly one of the two is None.
        scaled: sublayer scales each output where it enters the stream, so that the MLP reads a scaled
            attention; block lets the layer read itself whole and scales what leaves it.
        whole_in_eval: alpha = 1 in evaluation (the benchmark's form; the source does not).

    Raises:
        ValueError: an unknown name, or a warm-up that is not one positive length.
    """

    alpha_L: Tensor

    def __init__(
        self,
        spec: StreamSpec,
        *,
        schedule: str,
        warmup_fraction: float | None,
        warmup_steps: int | None,
        scaled: Literal["sublayer", "block"],
        whole_in_eval: bool,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"residual.schedule must be one of {', '.join(SCHEDULES)}, got {schedule}")
        if scaled not in ("sublayer", "block"):
            raise ValueError(f"residual.scaled must be sublayer or block, got {scaled}")
        if (warmup_fraction is None) == (warmup_steps is None):
            raise ValueError(
                f"exactly one of residual.warmup_fraction and residual.warmup_steps must be null, got "
                f"{warmup_fraction} and {warmup_steps}"
            )
        for key, value in (("warmup_fraction", warmup_fraction), ("warmup_steps", warmup_steps)):
            if value is not None and value <= 0:
                raise ValueError(
                    f"residual.{key} must be positive, got {value}; for no warm-up use residual=vanilla"
                )
        self.schedule, self.scaled, self.whole_in_eval = SCHEDULES[schedule], scaled, whole_in_eval
        self.warmup_fraction, self.warmup_steps = warmup_fraction, warmup_steps
        self.register_buffer("alpha_L", torch.ones(spec.n_layer), persistent=False)

    def on_step(self, step: int, max_steps: int) -> None:
        warmup = self.warmup_steps or (self.warmup_fraction or 0.0) * max_steps
        layer_L = torch.arange(1.0, len(self.alpha_L) + 1, dtype=torch.float64)
        self.alpha_L.copy_(self.schedule(step / warmup, layer_L))

    def begin(self, x0_BTD: Tensor) -> ProResState:
        return ProResState(x0_BTD, x0_BTD)

    def read(self, state: ProResState, site: Site) -> tuple[Tensor, ProResState]:
        return state.inner_BTD, state

    def write(self, state: ProResState, site: Site, y_BTD: Tensor) -> ProResState:
        if self.whole_in_eval and not self.training:
            outer_BTD = state.outer_BTD + y_BTD
        else:
            outer_BTD = torch.addcmul(state.outer_BTD, self.alpha_L[site.layer], y_BTD)
        whole_inside = self.scaled == "block" and not site.closes_block
        return ProResState(state.inner_BTD + y_BTD if whole_inside else outer_BTD, outer_BTD)

    def end(self, state: ProResState) -> Tensor:
        return state.outer_BTD
