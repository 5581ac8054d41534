"""Mini depth recurrence: visits a few consecutive layers again, from some step on.

    0 .. r_n, (r_1 .. r_n) `repeats` times, r_n + 1 .. L - 1        r_1 .. r_n = layers

A repeated visit shares the layer's attention and norms. Its MLP is shared, or untied: a copy that is initialized from
the layer's MLP, optimizer moments included, when repeated visits start.

Source: openai/parameter-golf, pull request 1204 (layers 4 and 5 of 11, once more from step 3,000 of 6,240,
untied).
"""

from typing import Annotated, Literal

from pydantic import Field

from src.recurrence.base import Recurrence, RecurrenceSpec, Visit


class MiniRecurrence(Recurrence):
    """Repeated layers; 8 * D^2 parameters per repeated visit with mlp=untied, none with mlp=shared.

    Args:
        layers: consecutive layer indices ([4, 5] of 11 in the source); None selects two in the middle.
        repeats: number of visits to each after its first (1 in the source).
        mlp: untied or shared (untied in the source).
        start_fraction: share of the run after which repeated visits start (3,000 of 6,240 steps in the source).
        start_step: the same in optimizer steps, 0 for the whole run; exactly one of the two must be None.
        ramp_steps: steps over which the gain of repeated visits grows from 0 to 1 (0 in the source).

    Raises:
        ValueError: `layers` are missing in the model or not consecutive, or another key is out of its bounds.
    """

    def __init__(
        self,
        spec: RecurrenceSpec,
        *,
        layers: list[int] | None,
        repeats: Annotated[int, Field(ge=0, le=1000)],
        mlp: Literal["untied", "shared"],
        start_fraction: float | None,
        start_step: int | None,
        ramp_steps: int,
    ) -> None:
        super().__init__(spec)
        self.layers = self._validate(layers)
        for key, value, least in (("repeats", repeats, 1), ("ramp_steps", ramp_steps, 0)):
            if value < least:
                raise ValueError(f"recurrence.{key} must be >= {least}, got {value}")
        if mlp not in ("untied", "shared"):
            raise ValueError(f"recurrence.mlp must be untied or shared, got {mlp}")
        if (start_fraction is None) == (start_step is None):
            raise ValueError(
                "exactly one of recurrence.start_fraction and recurrence.start_step must be null, got "
                f"{start_fraction} and {start_step}"
            )
        if start_fraction is not None and not 0 <= start_fraction < 1:
            raise ValueError(f"recurrence.start_fraction must be in [0, 1), got {start_fraction}")
        if start_step is not None and start_step < 0:
            raise ValueError(f"recurrence.start_step must be >= 0, got {start_step}")
        self.repeats, self.mlp, self.ramp_steps = repeats, mlp, ramp_steps
        self.start = start_fraction, start_step

    def _validate(self, layers: list[int] | None) -> list[int]:
        n_layer = self.spec.n_layer
        if layers is None:
            middle = max(0, (n_layer - 1) // 2 - 1 + n_layer % 2)
            return [middle, middle + 1] if n_layer > 1 else [0]
        consecutive = list(range(layers[0], layers[0] + len(layers))) if layers else []
        if not layers or list(layers) != consecutive or layers[0] < 0 or layers[-1] >= n_layer:
            raise ValueError(
                f"recurrence.layers must be consecutive layers between 0 and {n_layer - 1}, got {list(layers)}; for "
                "none use recurrence=none"
            )
        return list(layers)

    def visits(self) -> tuple[Visit, ...]:
        first, last = self.layers[0], self.layers[-1]
        order = [*range(last + 1), *(self.layers * self.repeats), *range(last + 1, self.spec.n_layer)]
        assert order[first] == first  # the first visits are in order
        return tuple(map(Visit, order))

    @property
    def untied(self) -> frozenset[int]:
        return frozenset(self.layers) if self.mlp == "untied" else frozenset()

    @property
    def delayed(self) -> bool:
        return any(self.start)

    def start_step(self, max_steps: int) -> int:
        fraction, step = self.start
        return round(fraction * max_steps) if fraction is not None else step or 0

    def gain(self, step: int, max_steps: int) -> float:
        since = step - self.start_step(max_steps)
        return min(1.0, max(0.0, since / self.ramp_steps)) if self.ramp_steps else 1.0
