"""Warm-up schedules of ProRes: weight alpha[l](t) of each layer's branches at an optimizer step.

With t = step / warmup steps and layers l = 1..L:

    linear  min(t L / l, 1)     sqrt  its square root     square  its square
    linear_equal  min(t, 1)     linear_reverse  `linear` with the layers in reverse order
    stagewise_m   m until t = (l - 1) / L, then linear up to 1 at t = l / L
    fix_m         m always

m is one of 0, L: 1 / L, sqrt_L: 1 / sqrt(L), sqrt_l: 1 / sqrt(l).

Source: dandingsky/ProRes (arXiv 2603.05369), torchrun_main.py (also for the names).
Shape letters: L n_layer.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from src.residual.base import ResidualStrategy, StateT, StreamSpec

#: Maps (t, layer numbers 1..L as floats) to alpha.
Schedule = Callable[[float, Tensor], Tensor]
#: Maps layer numbers to m.
Floor = Callable[[Tensor], Tensor]


def _linear(t: float, layer_L: Tensor) -> Tensor:
    return (t * len(layer_L) / layer_L).clamp(max=1.0)


def _stagewise(floor: Floor, t: float, layer_L: Tensor) -> Tensor:
    m_L = floor(layer_L)
    return m_L + (1 - m_L) * (t * len(layer_L) - (layer_L - 1)).clamp(0.0, 1.0)


FLOORS: dict[str, Floor] = {
    "0": torch.zeros_like,
    "L": lambda layer_L: torch.full_like(layer_L, 1 / len(layer_L)),
    "sqrt_L": lambda layer_L: torch.full_like(layer_L, len(layer_L) ** -0.5),
    "sqrt_l": torch.rsqrt,
}
SCHEDULES: dict[str, Schedule] = {
    "linear": _linear,
    "linear_equal": lambda t, layer_L: torch.full_like(layer_L, min(t, 1.0)),
    "linear_reverse": lambda t, layer_L: _linear(t, layer_L).flip(0),
    "sqrt": lambda t, layer_L: _linear(t, layer_L).sqrt(),
    "square": lambda t, layer_L: _linear(t, layer_L).square(),
    **{f"stagewise_{name}": partial(_stagewise, floor) for name, floor in FLOORS.items()},
    "fix_L": lambda t, layer_L: FLOORS["L"](layer_L),
    "fix_sqrt_L": lambda t, layer_L: FLOORS["sqrt_L"](layer_L),
    "fix_sqrt_l": lambda t, layer_L: FLOORS["sqrt_l"](layer_L),
}


class WarmupStrategy(ResidualStrategy[StateT]):
    """Strategy with a buffer of one weight per visit to a layer, set in every optimizer step; no parameters.

    Args:
        schedule: key of `SCHEDULES`.
        warmup_fraction: share of the run until every weight is 1.
        warmup_steps: the same in optimizer steps; exactly one of the two must be None.

    Raises:
        ValueError: `schedule` is unknown, or not exactly one length is given, or it is not positive.
    """

    may_skip: ClassVar[bool] = True

    alpha_L: Tensor

    def __init__(
        self, spec: StreamSpec, *, schedule: str, warmup_fraction: float | None, warmup_steps: int | None
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"residual.schedule must be one of {', '.join(SCHEDULES)}, got {schedule}")
        if (warmup_fraction is None) == (warmup_steps is None):
            raise ValueError(
                f"exactly one of residual.warmup_fraction and residual.warmup_steps must be null, got "
                f"{warmup_fraction} and {warmup_steps}"
            )
        for key, value in (("warmup_fraction", warmup_fraction), ("warmup_steps", warmup_steps)):
            if value is not None and value <= 0:
                raise ValueError(f"residual.{key} must be positive, got {value}; for no warm-up use residual=vanilla")
        self.schedule = SCHEDULES[schedule]
        self.warmup_fraction, self.warmup_steps = warmup_fraction, warmup_steps
        self.register_buffer("alpha_L", torch.ones(spec.n_block), persistent=False)

    def on_step(self, step: int, max_steps: int) -> None:
        warmup = self.warmup_steps or (self.warmup_fraction or 0.0) * max_steps
        layer_L = torch.arange(1.0, len(self.alpha_L) + 1, dtype=torch.float64)
        self.alpha_L.copy_(self.schedule(step / warmup, layer_L))
