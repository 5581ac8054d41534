"""Activation checkpointing of sublayers: the backward recomputes them from their inputs.

    x, state = read(state, site)        kept as the strategy keeps it
    y = F(N(x))                         only x is kept; N and F run again in the backward
    state = write(state, site, y)       kept as the strategy keeps it

A unit is one visit to one sublayer with its norms, because a strategy reads and writes between the sublayers of a
block. The strategy's own tensors are not touched: kernels of strategies with many streams or sources recompute those
themselves. A visit is a function of its input, and of the state where the strategy taps queries, keys and values; it is
called with the same ones in the backward, so that loss and gradients do not change.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174); torch.utils.checkpoint.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from src.kernels import attention
from src.residual.base import QKV

T = TypeVar("T")


def recompute_in_backward(
    visit: Callable[[Tensor | QKV, Any], T], dropout: float
) -> Callable[[Tensor | QKV, Any], T]:  # Any: each strategy has its own state
    """Return a function like `visit` whose backward calls `visit` again instead of keeping what it computed.

    Args:
        visit: runs a sublayer on its input and the strategy's state (None where nothing taps it).
        dropout: the model's dropout; above 0 the random state of the forward is restored for the second call.
    """

    def run(x: Tensor | QKV, state: Any) -> T:
        # The backward runs outside the context of training's forward; attention must take the same kernel in it.
        with attention.fixed_shapes(x if isinstance(x, Tensor) else x.q_BTD):
            return visit(x, state)

    if not torch.is_grad_enabled():
        return visit
    unit = visit if torch.compiler.is_compiling() else run  # a compiled graph holds its kernels
    return partial(checkpoint, unit, use_reentrant=False, preserve_rng_state=dropout > 0)
