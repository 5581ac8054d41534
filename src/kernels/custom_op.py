"""Functions as operators of torch, which a compiler calls and does not look into.

They have no gradient of their own, autograd functions call them, unless one is given with `differentiable`. A leaf:
any room may import it.
"""

from collections.abc import Callable
from typing import Any  # what an operator takes and gives is its function's business

import torch
from torch import Tensor
from torch.library import Library

_LIBRARY = Library("reslab", "DEF")  # type: ignore[no-untyped-call]  # torch's


def operator(function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The operator of a function, on any device; what `custom_op` puts around one costs as much as the smallest kernel.

    Args:
        function: its name, less a leading underscore, is the operator's.
        fake: the same for a compiler: outputs of the right type and shape, not filled.
    """
    name = function.__name__.removeprefix("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    tags = torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides
    _LIBRARY.define(f"{name}{schema}", tags=tags)  # type: ignore[no-untyped-call]  # torch's
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]  # torch's
    torch.library.register_fake(f"reslab::{name}", fake, lib=_LIBRARY)
    found: Callable[..., Any] = getattr(torch.ops.reslab, name).default
    return found


def directly(function: Callable[..., Any], found: Callable[..., Any]) -> Callable[..., Any]:
    """The operator `found` of a function, or the function itself where nobody looks on: lists cost a dispatcher much.

    For operators without a gradient, which have a tensor, or tensors in a list, among their arguments.
    """

    def call(*args: Any) -> Any:
        return function(*args) if _plain(args) else found(*args)

    return call


def _plain(args: tuple[Any, ...]) -> bool:
    for arg in args:
        first = arg[0] if isinstance(arg, list | tuple) and arg else arg
        if isinstance(first, Tensor):
            return type(first) is Tensor and not torch.compiler.is_compiling()
    return False


def differentiable(
    operator: Callable[..., Any], kept: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """An operator with its gradient, as `torch.library.register_autograd` wants it.

    Args:
        operator: as `operator` made it.
        kept: (ctx, inputs, output), saves what the gradient needs.
        backward: (ctx, a gradient an output), gives a gradient an input.
    """
    name = operator.name()  # type: ignore[attr-defined]  # an overload's
    torch.library.register_autograd(name, backward, setup_context=kept, lib=_LIBRARY)
    return operator
