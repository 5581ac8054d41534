"""Mini depth recurrence: visits a few consecutive layers again, from some step on.

    0 .. r_n, (r_1 .. r_n) `repeats` times, r_n + 1 .. L - 1        r_1 .. r_n = layers

A repeated visit shares the layer's attention and norms. Its MLP is shared, or untied: a copy that is initialized from
the layer's MLP, optimizer moments included, when repeated visits start.

Source: openai/parameter-golf, pull request 1204 (layers 4 and 5 of 11, once more from step 3,000 of 6,240,
untied).
"""

from typing import Annotated, Literal

from pydantic import Field

from src.recurrence.base import RecurrenceSpec
from src.recurrence.repeated_layers import RepeatedLayers
from src.source import Source


class MiniRecurrence(RepeatedLayers):
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

    source = Source(
        "openai/parameter-golf, pull request 1204",
        "openai/parameter-golf",
        "4908dc46f21e",
        deviations=(
            "The optimizer's moments of a copied MLP are copied with its weights; the source copies the weights only.",
        ),
    )

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
        super().__init__(
            spec,
            layers=_select_layers(spec.n_layer, layers),
            repeats=repeats,
            start_fraction=start_fraction,
            start_step=start_step,
            ramp_steps=ramp_steps,
        )
        if mlp not in ("untied", "shared"):
            raise ValueError(f"recurrence.mlp must be untied or shared, got {mlp}")
        self.mlp = mlp

    @property
    def untied(self) -> frozenset[int]:
        return frozenset(self.layers) if self.mlp == "untied" else frozenset()


def _select_layers(n_layer: int, layers: list[int] | None) -> list[int]:
    if layers is None:
        middle = max(0, (n_layer - 1) // 2 - 1 + n_layer % 2)
        return [middle, middle + 1] if n_layer > 1 else [0]
    consecutive = list(range(layers[0], layers[0] + len(layers))) if layers else []
    if not layers or list(layers) != consecutive or layers[0] < 0 or layers[-1] >= n_layer:
        raise ValueError(
            f"recurrence.layers must be consecutive layers between 0 and {n_layer - 1}, got {list(layers)}; for "
            "none use recurrence=none, for others recurrence=delayed_repeat"
        )
    return list(layers)
