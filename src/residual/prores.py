"""ProRes: branches are warmed up one layer after another; nothing is learned.

    x <- x + alpha(l, t) * F_k(N_k(x))      both sublayers of layer l (1-based), t = optimizer step

with S steps of warm-up in all and w_l = linspace(S / L, S, L):
    linear   min(t / w_l, 1)            sqrt     min(sqrt(t / w_l), 1)     square  min((t / w_l)^2, 1)
    equal    min(t / S, 1)              reverse  w flipped
    stagewise_0, _L, _sqrtL, _sqrtl: layer l rises from m to 1 while (l-1) S/L < t <= l S/L, with
             m = 0, 1/L, 1/sqrt(L), 1/sqrt(l);   fix_L, fix_sqrtL, fix_sqrtl: the constant alone

Source: "ProRes" (arXiv 2603.05369) and its code, dandingsky/ProRes; default linear, S = 24 % of the run.
At init (t = 0): the identity map, not vanilla; from step S on exactly vanilla (but for fix).
Validation uses the alpha of its step.
"""

import math

import torch
from torch import Tensor

from src.residual.base import ResidualStrategy, Site, StreamSpec

CONSTANTS = ("0", "L", "sqrtL", "sqrtl")
SCHEDULES = (
    *("linear", "sqrt", "square", "equal", "reverse"),
    *(f"stagewise_{m}" for m in CONSTANTS),
    *(f"fix_{m}" for m in CONSTANTS[1:]),
)


class ProRes(ResidualStrategy[Tensor]):
    """No parameters; one buffer of L factors, filled once an optimizer step.

    Args:
        spec: the trunk.
        schedule: one of `SCHEDULES`.
        warmup_fraction: S as a part of the run (0.24 in the paper).
        warmup_steps: S in optimizer steps instead; null takes the fraction.
    """

    alpha_L: Tensor

    def __init__(
        self, spec: StreamSpec, *, schedule: str, warmup_fraction: float, warmup_steps: int | None
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"residual.schedule must be one of {', '.join(SCHEDULES)}, got {schedule}")
        if not 0 < warmup_fraction <= 1:
            raise ValueError(f"residual.warmup_fraction must be in (0, 1], got {warmup_fraction}")
        if warmup_steps is not None and warmup_steps < 1:
            raise ValueError(f"residual.warmup_steps must be null or at least 1, got {warmup_steps}")
        self.schedule, self.warmup_fraction, self.warmup_steps = schedule, warmup_fraction, warmup_steps
        self.register_buffer("alpha_L", torch.zeros(spec.n_layer), persistent=False)
        self.on_step(0, 1)

    def on_step(self, step: int, max_steps: int) -> None:
        S = self.warmup_steps or max(1.0, self.warmup_fraction * max_steps)
        self.alpha_L.copy_(warmed(self.schedule, step, S, len(self.alpha_L)))

    def begin(self, x0_BTD: Tensor) -> Tensor:
        return x0_BTD

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state, state

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + self.alpha_L[site.layer] * y_BTD

    def end(self, state: Tensor) -> Tensor:
        return state


def warmed(schedule: str, t: int, S: float, L: int) -> Tensor:
    """The factors of all layers at step t, [L]."""
    layer_L = torch.arange(1, L + 1, dtype=torch.float64)
    width_L = layer_L * S / L
    kind, _, constant = schedule.partition("_")
    if kind in ("stagewise", "fix"):
        floors = {"0": 0 * layer_L, "L": 0 * layer_L + 1 / L, "sqrtL": 0 * layer_L + 1 / math.sqrt(L)}
        floor_L = floors.get(constant, layer_L.rsqrt())
        risen_L = ((t - (layer_L - 1) * S / L) * L / S).clamp(0, 1) if kind == "stagewise" else 0 * layer_L
        return floor_L + (1 - floor_L) * risen_L
    if kind == "equal":
        width_L = torch.full_like(layer_L, S)
    if kind == "reverse":
        width_L = width_L.flip(0)
    power = {"sqrt": 0.5, "square": 2.0}.get(kind, 1.0)
    return (t / width_L).pow(power).clamp(max=1.0)
