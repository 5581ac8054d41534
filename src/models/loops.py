"""Loops of a recurrence with an adapter: the stream at their borders, and the strategies that allow them.

Shape letters: B batch, T tokens, D n_embd.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

from src.recurrence.base import LoopAdapter, Loops
from src.residual.base import ResidualStrategy, Site


def cross_loops(
    loops: Loops,
    adapter: LoopAdapter,
    strategy: ResidualStrategy[Any],
    final_norm: Callable[[Tensor], Tensor],
    site: Site,
    state: Any,  # the strategy's
    anchor_BTD: Tensor | None,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[Any, Tensor | None]:
    """Return the state before a site that opens a block, changed at the border of a loop, and the anchor.

    The anchor is the stream where the first loop starts, None before. The strategy's state holds one stream, as
    `require_one_stream` has checked.
    """
    starts, normed = site.block in loops.starts, site.block == loops.end and loops.norm_after
    if not (starts or normed):
        return state, anchor_BTD
    x_BTD = cast(Tensor, strategy.get_stream(state))
    if normed:
        return strategy.replace_stream(state, final_norm(x_BTD)), anchor_BTD
    if anchor_BTD is None:
        x_BTD, anchor_BTD = adapter.begin(x_BTD), x_BTD
    with autocast():
        adapted_BTD = adapter(x_BTD, anchor_BTD)
    return strategy.replace_stream(state, adapted_BTD.to(x_BTD.dtype)), anchor_BTD


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
