"""Loops of a recurrence with an adapter: the stream where a loop starts, and the strategies that allow one.

Shape letters: B batch, T tokens, D n_embd.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from src.recurrence.base import LoopAdapter, Loops
from src.residual.base import ResidualStrategy, Site


def start_loop(
    adapter: LoopAdapter,
    x_BTD: Tensor,
    anchor_BTD: Tensor | None,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[Tensor, Tensor]:
    """Return the stream at the start of a loop, and the anchor: the stream where the first loop starts."""
    if anchor_BTD is None:
        x_BTD, anchor_BTD = adapter.begin(x_BTD), x_BTD
    with autocast():
        adapted_BTD = adapter(x_BTD, anchor_BTD)
    return adapted_BTD.to(x_BTD.dtype), anchor_BTD


@torch.no_grad()
def require_one_stream(
    loops: Loops, strategy: ResidualStrategy[Any], sites: tuple[Site, ...], n_embd: int
) -> None:  # of any state
    """Reject loops through an adapter if the strategy's state is not one stream [B, T, D] at each of their borders.

    Raises:
        ValueError: the state is something else.
    """
    zeros_BTD = torch.zeros(1, 1, n_embd)
    state = strategy.begin(zeros_BTD)
    for site in sites:
        border = site.index == 0 or (site.opens_block and site.block in {*loops.starts, loops.end})
        stream = strategy.get_stream(state) if border else zeros_BTD
        if stream is None or stream.shape != zeros_BTD.shape:
            raise ValueError(
                f"recurrence must not loop through an adapter with {type(strategy).__name__}, whose state is not one "
                "stream; give recurrence=delayed_repeat or residual=vanilla"
            )
        _, state = strategy.read(state, site)
        state = strategy.write(state, site, zeros_BTD)
