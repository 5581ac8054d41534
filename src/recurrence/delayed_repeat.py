"""Delayed repeat: visits some layers several times more with the same weights, from some step on.

    0 .. r_n, (r_1 .. r_n) `repeats` times, r_n + 1 .. L - 1        r_1 < .. < r_n = layers

A repeated visit shares everything with the layer. `mini` is one repeat of two layers with MLPs of their own.

Source: openai/parameter-golf, records/track_10min_16mb/2026-04-29_SmearGateBOSFix_3Seed_1.06141 (layers 3 to 5 of 11,
twice more, after 0.35 of the run); qlabs-eng/slowrun, train.py (`set_dupe_layers`: layers 15 to 20 of 30, twice more,
from epoch 7 on).
Shape letters: L n_layer.
"""

from typing import Annotated

from pydantic import Field

from src.recurrence.base import RecurrenceSpec
from src.recurrence.repeated_layers import RepeatedLayers
from src.source import Source


class DelayedRepeat(RepeatedLayers):
    """Repeated layers with shared weights; no parameters.

    Args:
        layers: ascending layer indices ([3, 4, 5] of 11 in the source); None selects three in the middle.
        repeats: number of visits to each after its first (2 in the source).
        start_fraction: share of the run after which repeated visits start (0.35 in the source).
        start_step: the same in optimizer steps, 0 for the whole run; exactly one of the two must be None.
        ramp_steps: steps over which the gain of repeated visits grows from 0 to 1 (0 in the source).
    """

    source = Source(
        "openai/parameter-golf, record of 2026-04-29; qlabs-eng/slowrun, train.py",
        "openai/parameter-golf",
        "4908dc46f21e",
        deviations=(
            "start_fraction counts optimizer steps; the source counts wall-clock time where the run has a limit.",
        ),
    )

    def __init__(
        self,
        spec: RecurrenceSpec,
        *,
        layers: list[int] | None,
        repeats: Annotated[int, Field(ge=0, le=1000)],
        start_fraction: float | None,
        start_step: int | None,
        ramp_steps: int,
    ) -> None:
        first = max(0, (spec.n_layer - 1) // 2 - 2)
        super().__init__(
            spec,
            layers=list(range(first, min(first + 3, spec.n_layer)) if layers is None else layers),
            repeats=repeats,
            start_fraction=start_fraction,
            start_step=start_step,
            ramp_steps=ramp_steps,
        )
