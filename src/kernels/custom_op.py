"""Python functions as torch operators, which `torch.compile` calls without looking into them.

Operators have no gradient of their own, since autograd functions call them, unless `differentiable` adds one.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.library import Library

#: Context of an autograd function, which has no public type.
Context: TypeAlias = Any

#: Of the operators; another one in the installed package, which may be imported beside the checkout.
NAMESPACE = "reslab" if __name__.startswith("src.") else "reslab_package"
_LIBRARY = Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]  # torch's


def operator(function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operator of a function on any device; `torch.library.custom_op` adds as much as a small kernel costs.

    Args:
        function: its name without a leading underscore is the operator's.
        fake: the same for a compiler: outputs of the right dtype and shape, not filled.
    """
    name = function.__name__.removeprefix("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    tags = torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides
    _LIBRARY.define(f"{name}{schema}", tags=tags)  # type: ignore[no-untyped-call]  # torch's
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]  # torch's
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def bypass_dispatcher(function: Callable[..., Any], operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that skips torch's dispatcher in eager mode, where lists of tensors make it slow.

    Args:
        function: has a tensor, or tensors in a list, among its arguments, and no gradient.
        operator: its operator, which is called with tensor subclasses and inside a compiler.
    """

    def call(*args: Any) -> Any:
        return function(*args) if _is_eager(args) else operator(*args)

    return call


def _is_eager(args: tuple[Any, ...]) -> bool:
    """Return whether the first tensor is a plain one outside a compiler."""
    for arg in args:
        first = arg[0] if isinstance(arg, list | tuple) and arg else arg
        if isinstance(first, Tensor):
            return type(first) is Tensor and not torch.compiler.is_compiling()
    return False


def differentiable(
    operator: Callable[..., Any], kept: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Add a gradient to an operator, as `torch.library.register_autograd` takes it, and return the operator.

    Args:
        operator: a result of `operator`.
        kept: (ctx, inputs, output), saves what the gradient needs.
        backward: (ctx, gradient of each output), returns the gradient of each input.
    """
    name = operator.name()  # type: ignore[attr-defined]  # an overload's
    torch.library.register_autograd(name, backward, setup_context=kept, lib=_LIBRARY)
    return operator
