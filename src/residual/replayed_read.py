"""A read by a GPU's kernels, as an autograd function whose backward makes the streams again (`replay.py`).

    u, H', B = read(H + B y)        forward: kernels see the streams once, and keep numbers of a token alone
    dH, dB, dy, dparameters         backward: from the segment's first streams, and what came since

Shape letters: N streams, C = N + 2 columns of [A | B].
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from src.residual.hyper_streams import Streams
from src.residual.replay import Replay, replay_of


class Numbers(NamedTuple):
    """What a forward leaves for the backward: its weights [A | B], and what it keeps of a token otherwise."""

    weights_BTNC: Tensor
    kept: Tensor


class Grads(NamedTuple):
    """Of u, the mixed streams and B."""

    du_BTD: Tensor
    dh_BTND: Tensor
    db_BTN: Tensor


class Kernels(NamedTuple):
    """Of one strategy.

    forward(h, b, y, *parameters, *constants): u, the mixed streams, B, *Numbers.
    backward(replay, b, parameters, numbers, grads, constants): the gradients of h, b and y, then of each parameter.
    """

    n_parameter: int
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]


_KERNELS: dict[str, Kernels] = {}  # by a name, which a compiler's graph can hold


def registered(name: str, kernels: Kernels) -> str:
    """The name by which `replayed_read` finds them."""
    _KERNELS[name] = kernels
    return name


def replayed_read(
    name: str, state: Streams, parameters: tuple[Tensor, ...], constants: tuple[float, ...]
) -> tuple[Tensor, Streams]:
    """What the sublayer is given [B, T, D], in the type of the output that waited; and the mixed streams."""
    assert len(parameters) == _KERNELS[name].n_parameter
    replay, y_BTD = state.replay, state.y_BTD
    if y_BTD is None:
        h = state.h_BTND if replay is None else replay.start  # the one row that all streams are
        given: tuple[Tensor | None, ...] = (h.contiguous(), None, None)
        replay = Replay(h.contiguous().detach())
    else:
        h, b_BTN, y_BTD = state.h_BTND.contiguous(), state.b.contiguous(), y_BTD.contiguous()
        given, replay = (h, b_BTN, y_BTD), replay_of(h, b_BTN, y_BTD, replay)
    saved = (replay.start, *replay.weights, *replay.outputs)
    u_BTD, mixed_BTND, b_out_BTN, own_BTNC = _read(name, constants, *given, *parameters, *saved)
    return u_BTD, Streams(mixed_BTND, b_out_BTN, None, replay.visited(own_BTNC.detach()))


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def _read(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], _Read.apply(*args))  # type: ignore[no-untyped-call]  # torch's


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        name: str,
        constants: tuple[float, ...],
        h: Tensor,
        b_BTN: Tensor | None,
        y_BTD: Tensor | None,
        *others: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kernels = _KERNELS[name]
        parameters = others[: kernels.n_parameter]
        u_BTD, mixed_BTND, b_out_BTN, *numbers = kernels.forward(h, b_BTN, y_BTD, *parameters, *constants)
        ctx.save_for_backward(b_BTN, *numbers, *others)
        ctx.kernels, ctx.constants = kernels, constants
        ctx.mark_non_differentiable(numbers[0])
        return u_BTD, mixed_BTND, b_out_BTN, numbers[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        b_BTN, weights_BTNC, kept, *others = ctx.saved_tensors
        n = ctx.kernels.n_parameter
        parameters, start, since = others[:n], others[n], others[n + 1 :]
        replay = Replay(start, tuple(since[: len(since) // 2]), tuple(since[len(since) // 2 :]))
        given = Grads(*(grad.contiguous() for grad in grads[:3]))
        dh, db, dy, *dparameters = ctx.kernels.backward(
            replay, b_BTN, parameters, Numbers(weights_BTNC, kept), given, ctx.constants
        )
        waited = (db, dy) if since else (None, None)
        return None, None, dh, *waited, *dparameters, *[None] * (len(others) - n)
