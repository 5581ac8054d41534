"""Comparison of a method with an oracle: an independent implementation written from the source of the method.

A test calls `compare_flow` for a strategy over plain sublayers, `compare_model` for one that needs attention or norms,
and `compare_module` for a norm. All parameters must be jittered: a zero gate hides what is behind it. `groups_by_name`
gives the learning rates and weight decays that the optimizer applies.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from src.models.gpt import GPT
from src.models.optim.groups import parameter_groups
from src.residual.base import StreamSpec
from tests.residual.plain import Sublayers, embedding_like, flow, sublayers
from tests.support import tokens

#: Optimizer values at which `groups_by_name` reads rates and decays.
LR, WEIGHT_DECAY = 1e-3, 0.1


def assert_same(ours: Tensor, theirs: Tensor, inputs: Iterable[Tensor], tolerance: float) -> None:
    """Compare two outputs, and the gradients of a fixed random projection of them, both relative to their size."""
    assert ours.dtype == theirs.dtype == torch.float64
    assert_close("output", ours, theirs, tolerance)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    inputs = list(inputs)
    left, right = (torch.autograd.grad((out * direction).sum(), inputs, allow_unused=True) for out in (ours, theirs))
    for number, (a, b) in enumerate(zip(left, right, strict=True)):
        zero = torch.zeros_like(inputs[number])
        assert_close(f"gradient {number}", zero if a is None else a, zero if b is None else b, tolerance)


def assert_close(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Compare two tensors; the largest difference must be below `tolerance` times the largest value."""
    assert ours.shape == theirs.shape, name
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1.0), name


def compare_flow(
    strategy: Any,
    spec: StreamSpec,
    oracle: Callable[[Tensor, Sublayers], Tensor],
    tolerance: float = 1e-10,
) -> None:
    """Compare a float64 strategy with `oracle(x0, branches)`: outputs, gradients of x0 and of every parameter.

    The oracle may call `spec`'s sublayers and read the strategy's parameters; it must not call its methods.
    """
    x0 = embedding_like(spec.n_embd).requires_grad_()
    branches = sublayers(spec.n_site, spec.n_embd)
    params = list(strategy.parameters())
    assert_same(flow(strategy, spec, x0, branches), oracle(x0, branches), [x0, *params], tolerance)


def compare_model(gpt: GPT, oracle: Callable[[GPT, Tensor], Tensor], tolerance: float = 1e-10) -> None:
    """Compare `gpt.hidden` of a float64 model with `oracle(gpt, idx)`: outputs and gradients of every parameter."""
    idx = tokens()
    params = [p for p in gpt.parameters() if p.requires_grad]
    assert_same(gpt.hidden(idx), oracle(gpt, idx), params, tolerance)


def compare_module(module: nn.Module, x: Tensor, oracle: Callable[[Tensor], Tensor], tolerance: float = 1e-10) -> None:
    """Compare a float64 module with `oracle(x)`: outputs, gradients of `x` and of every parameter."""
    x = x.detach().requires_grad_()
    assert_same(module(x), oracle(x), [x, *module.parameters()], tolerance)


def groups_by_name(gpt: GPT) -> dict[str, tuple[float, float]]:
    """Return (peak learning rate, weight decay) of every parameter, at `LR` and `WEIGHT_DECAY` of the optimizer."""
    groups = parameter_groups(gpt, LR, WEIGHT_DECAY)
    return {groups.names[p]: (LR * g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
