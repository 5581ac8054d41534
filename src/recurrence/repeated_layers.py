"""Base class of recurrences that visit some layers again, from some step on.

    0 .. r_n, (r_1 .. r_n) `repeats` times, r_n + 1 .. L - 1        r_1 < .. < r_n: the repeated layers

Shape letters: L n_layer.
"""

from typing import Annotated

from pydantic import Field

from src.recurrence.base import Recurrence, RecurrenceSpec, Visit


class RepeatedLayers(Recurrence):
    """Layers that are visited `repeats` times more, right after the last of them.

    Args:
        layers: ascending layer indices.
        repeats: number of visits to each after its first.
        start_fraction: share of the run after which repeated visits start.
        start_step: the same in optimizer steps, 0 for the whole run; exactly one of the two must be None.
        ramp_steps: steps over which the gain of repeated visits grows from 0 to 1.

    Raises:
        ValueError: `layers` are missing in the model or not ascending, or another key is out of its bounds.
    """

    def __init__(
        self,
        spec: RecurrenceSpec,
        *,
        layers: list[int],
        repeats: Annotated[int, Field(ge=0, le=1000)],
        start_fraction: float | None,
        start_step: int | None,
        ramp_steps: int,
    ) -> None:
        super().__init__(spec)
        last = spec.n_layer - 1
        if not layers or layers != sorted(set(layers)) or not all(0 <= layer <= last for layer in layers):
            raise ValueError(
                f"recurrence.layers must be ascending layers between 0 and {last}, got {layers}; for none use "
                "recurrence=none"
            )
        for key, value, least in (("repeats", repeats, 1), ("ramp_steps", ramp_steps, 0)):
            if value < least:
                raise ValueError(f"recurrence.{key} must be >= {least}, got {value}")
        if (start_fraction is None) == (start_step is None):
            raise ValueError(
                "exactly one of recurrence.start_fraction and recurrence.start_step must be null, got "
                f"{start_fraction} and {start_step}"
            )
        if start_fraction is not None and not 0 <= start_fraction < 1:
            raise ValueError(f"recurrence.start_fraction must be in [0, 1), got {start_fraction}")
        if start_step is not None and start_step < 0:
            raise ValueError(f"recurrence.start_step must be >= 0, got {start_step}")
        self.layers, self.repeats, self.ramp_steps = layers, repeats, ramp_steps
        self.start = start_fraction, start_step

    def visits(self) -> tuple[Visit, ...]:
        after = self.layers[-1] + 1
        order = [*range(after), *(self.layers * self.repeats), *range(after, self.spec.n_layer)]
        return tuple(map(Visit, order))

    @property
    def delayed(self) -> bool:
        return any(self.start)

    def start_step(self, max_steps: int) -> int:
        fraction, step = self.start
        return round(fraction * max_steps) if fraction is not None else step or 0

    def gain(self, step: int, max_steps: int) -> float:
        since = step - self.start_step(max_steps)
        return min(1.0, max(0.0, since / self.ramp_steps)) if self.ramp_steps else 1.0
