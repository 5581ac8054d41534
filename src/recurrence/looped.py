"""Looped depth: a prelude, a core that is visited several times, a coda; every loop reads the prelude's output again.

    e = prelude(x0);   s <- 0
    s <- core(A [s, e])     `loops` times, A: [2 D -> D], without bias unless the model has biases
    x = coda(N(s))          N: the trunk's final norm, which is applied after the coda again

Source: Geiping et al., "Scaling up Test-Time Compute with Latent Reasoning: A Recurrent Depth Approach" (arXiv
2502.05171), section 3; seal-rg/recurrent-pretraining, recpre/model_dynamic.py (`RecurrentGPT`).
At init: another function than a plain trunk; A is random.
Shape letters: B batch, T tokens, D n_embd.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from src.bounds import Count
from src.recurrence.base import LoopAdapter, Loops, Recurrence, RecurrenceSpec, Visit
from src.source import Source

LayerCount = Annotated[int, Field(ge=0, le=100_000)]


class ConcatAdapter(LoopAdapter):
    """Linear map of the state beside the anchor; 2 * D^2 parameters, and D biases if the model has biases."""

    width_readers = ("linear.weight",)

    def __init__(self, spec: RecurrenceSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * spec.n_embd, spec.n_embd, bias=spec.bias)

    def reset(self) -> None:
        nn.init.normal_(self.linear.weight, std=math.sqrt(2 / (5 * self.linear.out_features)))
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def begin(self, anchor_BTD: Tensor) -> Tensor:
        return torch.zeros_like(anchor_BTD)

    def forward(self, x_BTD: Tensor, anchor_BTD: Tensor) -> Tensor:
        s_BTD: Tensor = self.linear(torch.cat([x_BTD, anchor_BTD], dim=-1))
        return s_BTD


class LoopedDepth(Recurrence):
    """Core of layers that is visited `loops` times; parameters of `ConcatAdapter`.

    Args:
        prelude, coda: numbers of layers before and after the core (2 and 2 of 8 in the source); None for a quarter.
        loops: visits to each layer of the core (32 on average in the source).

    Raises:
        ValueError: no layer is left for the core, or a key is out of its bounds.
    """

    source = Source(
        "arXiv 2502.05171, section 3",
        "seal-rg/recurrent-pretraining",
        "59e0b69b2d96",
        deviations=(
            "The number of loops is fixed for a run; the source draws it in every step (mean 32) and backpropagates "
            "through the last 8 loops, which would compile one graph for each number.",
            "The state starts at zero, state_init=zero in the source's code; its large run draws it at random in every "
            "forward, so that an evaluation is not deterministic.",
            "Blocks and initial values are those of the trunk; the source has sandwich norms that include the skip "
            "connection, and an initialization of its own, of which the adapter has the deviation without the cut.",
        ),
    )

    def __init__(
        self, spec: RecurrenceSpec, *, prelude: LayerCount | None, coda: LayerCount | None, loops: Count
    ) -> None:
        super().__init__(spec)
        quarter = round(spec.n_layer / 4)
        self.prelude, self.coda = (quarter if count is None else count for count in (prelude, coda))
        self.n_core = spec.n_layer - self.prelude - self.coda
        if self.prelude < 0 or self.coda < 0 or self.n_core < 1:
            raise ValueError(
                f"recurrence.prelude and recurrence.coda must be >= 0 and leave a layer of {spec.n_layer} for the core, "
                f"got {self.prelude} and {self.coda}"
            )
        if loops < 1:
            raise ValueError(f"recurrence.loops must be >= 1, got {loops}; without loops use recurrence=none")
        self.n_loop = loops

    def visits(self) -> tuple[Visit, ...]:
        last = self.prelude + self.n_core
        core = list(range(self.prelude, last))
        return tuple(map(Visit, [*range(self.prelude), *(core * self.n_loop), *range(last, self.spec.n_layer)]))

    @property
    def loops(self) -> Loops:
        end = self.prelude + self.n_core * self.n_loop
        return Loops(frozenset(range(self.prelude, end, self.n_core)), end, norm_after=True)

    def build_adapter(self) -> ConcatAdapter:
        return ConcatAdapter(self.spec)
