"""State that the autograd functions of one forward share during a backward.

A function may leave what its inputs' gradients need to the functions that made these inputs: autograd runs a node after
all nodes that use its outputs, so that these read everything at once. Example, where `Mix` mixes outputs of `Source`:

    Source.forward    ctx.state = BackwardState(list)
    Mix.forward       ctx.states = [v.grad_fn.state for v in values]
    Mix.backward      for state in ctx.states: state.current().append(dx);  return None for every source
    Source.backward   gradients = ctx.state.current()

A graph may run several backwards (`retain_graph=True`), each through some of its nodes only. `current` returns a fresh
state in each of them, so that nothing is taken from an earlier one.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class BackwardState(Generic[T]):
    """State of the backward under way.

    Args:
        create: makes the state that a backward starts from.
    """

    def __init__(self, create: Callable[[], T]) -> None:
        self._create = create
        self._backward = -1  # no backward has this number
        self._state = create()

    def current(self) -> T:
        """Return the state of the backward under way, created when it first asks."""
        # Private to torch, which names a backward in no other way; `torch.utils.checkpoint` reads it as well.
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward, self._state = backward, self._create()
        return self._state

    def clear(self) -> None:
        """Release the tensors in the state before the graph is released."""
        self._state = self._create()
