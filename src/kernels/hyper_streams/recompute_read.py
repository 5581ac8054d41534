"""A read by a GPU's kernels, as an autograd function whose backward makes the streams again (`replay.py`).

    u, H', B = read(H + B y)        forward: kernels see the streams once, and keep numbers of a token alone
    dH, dB, dy, dparameters         backward: from the segment's first streams, and what came since

Shape letters: N streams, C = N + 2 columns of [A | B].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.hyper_streams.recompute import SEGMENT, Replay, replay_of
from src.kernels.hyper_streams.reference import Streams


class Kernels(NamedTuple):
    """Of one strategy.

    forward(h, b, y, shares, *parameters, *constants): u, the mixed streams, B, their shares, and what is kept.
    backward(start, shares, outputs, b, *parameters, *kept, *grads, *constants): of h, b, y and each parameter.
    segment: sites that replay from one start, by the streams' type; as many as `SEGMENT` has, or fewer.
    """

    n_parameter: int
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    segment: Mapping[torch.dtype, int] = SEGMENT


_KERNELS: dict[str, Kernels] = {}  # by a name, which a compiler's graph can hold


def registered(name: str, kernels: Kernels) -> str:
    """The name by which `replayed_read` finds them."""
    _KERNELS[name] = kernels
    return name


def replayed_read(
    name: str, state: Streams, parameters: tuple[Tensor, ...], constants: tuple[float, ...]
) -> tuple[Tensor, Streams]:
    """What the sublayer is given [B, T, D], in the type of the output that waited (else the weights'); mixed streams."""
    kernels = _KERNELS[name]
    assert len(parameters) == kernels.n_parameter
    replay, y_BTD = state.replay, state.y_BTD
    if y_BTD is None:
        h = (state.h_BTND if replay is None else replay.start).contiguous()  # the one row that all streams are
        given: tuple[Tensor | None, ...] = (h, None, None)
        replay = Replay(h.detach())
    else:
        h, b_BTN, y_BTD = state.h_BTND.contiguous(), state.b.contiguous(), y_BTD.contiguous()
        given, replay = (h, b_BTN, y_BTD), replay_of(h, y_BTD, replay, kernels.segment[h.dtype])
    saved = (replay.shares, replay.start, *replay.outputs)
    u_BTD, mixed_BTND, b_out_BTN, shares_BTRN = _read(name, constants, *given, *parameters, *saved)
    return u_BTD, Streams(mixed_BTND, b_out_BTN, None, replay._replace(shares=shares_BTRN.detach()))


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
        *others: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kernels = _KERNELS[name]
        parameters, shares_BTRN = others[: kernels.n_parameter], others[kernels.n_parameter]
        out = kernels.forward(h, b_BTN, y_BTD, shares_BTRN, *parameters, *constants)
        u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN, *kept = out
        ctx.save_for_backward(b_BTN, *others, *kept)
        ctx.kernels, ctx.constants, ctx.n_other = kernels, constants, len(others)
        ctx.mark_non_differentiable(shares_out_BTRN)
        return u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        b_BTN, *saved = ctx.saved_tensors
        others, kept, n = saved[: ctx.n_other], saved[ctx.n_other :], ctx.kernels.n_parameter
        parameters, (shares_BTRN, start, *outputs) = others[:n], others[n:]
        given = (grad.contiguous() for grad in grads[:3])
        dh, db, dy, *dparameters = ctx.kernels.backward(
            start, shares_BTRN, outputs, b_BTN, *parameters, *kept, *given, *ctx.constants
        )
        waited = (db, dy) if outputs else (None, None)
        return None, None, dh, *waited, *dparameters, *[None] * (len(others) - n)
