"""`hyperconn_triton` as operators of torch, and the read that they make: its backward replays the streams.

Equations: `hyperconn_read.py`, its plain form; what is kept: `replay.py`.

Shape letters: N streams, M = N + 1 columns of A, C = N + 2 columns of W, P programs.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from src.residual.hyper_streams import Streams
from src.residual.replay import replay_of
from src.residual.stream_operators import BACKWARD, FORWARD, launched, operator, padded


class Given(NamedTuple):
    """What a site's kernels are given of its parameters: the centred projection, the bias in z, the rest as it is."""

    w_CD: Tensor
    bias_C: Tensor
    scale_2: Tensor
    a_NM: Tensor
    b_N: Tensor


def _hyperconn_read(
    h: Tensor,
    b_BTN: Tensor | None,
    y_BTD: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u, the mixed streams, B, and to keep: [A | B], and the sums of every row; `h` may be the copies' one [B, T, D]."""
    from src.residual.hyperconn_triton import hyperconn_forward

    out = _hyperconn_read_fake(h, b_BTN, y_BTD, w_CD, bias_C, scale_2, a_NM, b_N, eps)
    N, tokens = len(b_N), out[0].shape[:2].numel()
    waiting = (h, h) if y_BTD is None else (b_BTN, y_BTD)
    launched(hyperconn_forward, h, tokens, N, FORWARD)(
        h, *waiting, w_CD, bias_C, scale_2, a_NM, b_N, *out, tokens, eps,
        **_columns(N), COPIES=h.dim() == 3, WAITS=y_BTD is not None,
    )  # fmt: skip
    return out


def _hyperconn_read_fake(
    h: Tensor,
    b_BTN: Tensor | None,
    y_BTD: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, D, N = h.shape[0], h.shape[1], h.shape[-1], len(b_N)
    u_BTD = h.new_empty(B, T, D) if y_BTD is None else torch.empty_like(y_BTD)
    b_out_BTN = w_CD.new_empty(B, T, N)
    kept = w_CD.new_empty(B, T, N, N + 2), w_CD.new_empty(B, T, N, N + 4)
    return u_BTD, h.new_empty(B, T, N, D), b_out_BTN, *kept


def _hyperconn_read_backward(
    start: Tensor,
    weights: list[Tensor],
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    own_BTNC: Tensor,
    kept: Tensor,
    du_BTD: Tensor,
    dh_BTND: Tensor,
    db_BTN: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of h, of B and the output that waited, of w, and the sums over tokens of d[A | B], d[A | B] z and dz."""
    from src.residual.hyperconn_triton import hyperconn_backward

    out = _backward_room(start, outputs, dh_BTND, w_CD)
    N, D, J = dh_BTND.shape[2], dh_BTND.shape[3], len(outputs)
    tokens = dh_BTND.shape[:2].numel()
    launch = launched(hyperconn_backward, dh_BTND, tokens, N, BACKWARD)
    P, C = launch.programs, N + 2
    dw_PCD, small_P3NC = w_CD.new_empty(P, C, D), w_CD.new_empty(P, 3, N, C)
    launch(
        start, padded(weights, own_BTNC), padded(outputs, du_BTD), J, own_BTNC if b_BTN is None else b_BTN,
        w_CD, bias_C, scale_2, own_BTNC, kept, du_BTD, dh_BTND, db_BTN,
        *out, dw_PCD, small_P3NC, w_CD.new_empty(P, 2, N, C + 2), tokens, eps,
        **_columns(N), K=len(padded(weights, own_BTNC)), COPIES=start.dim() == 3,
        MIXED=J > 0 and weights[0].dim() == 3, WAITS=J > 0,
    )  # fmt: skip
    return *out, dw_PCD.sum(0), small_P3NC.sum(0)


def _hyperconn_read_backward_fake(
    start: Tensor,
    weights: list[Tensor],
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    own_BTNC: Tensor,
    kept: Tensor,
    du_BTD: Tensor,
    dh_BTND: Tensor,
    db_BTN: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    N = dh_BTND.shape[2]
    out = _backward_room(start, outputs, dh_BTND, w_CD)
    return *out, torch.empty_like(w_CD), w_CD.new_empty(3, N, N + 2)


def _backward_room(
    start: Tensor, outputs: list[Tensor], dh_BTND: Tensor, w_CD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of h (of its one row, where its streams are copies), and of B and y where y waited."""
    if outputs:
        return torch.empty_like(dh_BTND), w_CD.new_empty(dh_BTND.shape[:3]), torch.empty_like(outputs[-1])
    return torch.empty_like(start), w_CD.new_empty(0), w_CD.new_empty(0)


def _columns(n_stream: int) -> dict[str, int]:
    """The powers of two that hold N rows and C + 2 columns."""
    return {"NP": 1 << (n_stream - 1).bit_length(), "CP": 1 << (n_stream + 3).bit_length()}


hyperconn_read = operator(_hyperconn_read, _hyperconn_read_fake)
hyperconn_read_backward = operator(_hyperconn_read_backward, _hyperconn_read_backward_fake)


def replayed_read(state: Streams, given: Given, eps: float) -> tuple[Tensor, Streams]:
    """What the sublayer is given [B, T, D], in the type of the output that waited; and the mixed streams."""
    copies = state.y_BTD is None and state.replay is not None
    h = (state.replay.start if copies and state.replay else state.h_BTND).contiguous()
    y_BTD = None if state.y_BTD is None else state.y_BTD.contiguous()
    b_BTN = None if y_BTD is None else state.b.contiguous()
    replay = replay_of(h, b_BTN, y_BTD, None if copies else state.replay)
    others = (*given, replay.start, *replay.weights, *replay.outputs)
    u_BTD, mixed_BTND, b_out_BTN, own_BTNC = _read(eps, len(replay.outputs), h, b_BTN, y_BTD, *others)
    return u_BTD, Streams(mixed_BTND, b_out_BTN, None, replay.visited(own_BTNC.detach()))


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def _read(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], _Read.apply(*args))  # type: ignore[no-untyped-call]  # torch's


class _Read(torch.autograd.Function):
    """u, the mixed streams, B and [A | B]; the gradient of `given` is that of what the kernels are given."""

    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        eps: float,
        n_output: int,
        h: Tensor,
        b_BTN: Tensor | None,
        y_BTD: Tensor | None,
        *others: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        given = _unpacked(others, n_output)[0]
        u_BTD, mixed_BTND, b_out_BTN, own_BTNC, kept = hyperconn_read(h, b_BTN, y_BTD, *given, eps)
        ctx.save_for_backward(b_BTN, own_BTNC, kept, *others)
        ctx.eps, ctx.n_output = eps, n_output
        ctx.mark_non_differentiable(own_BTNC)
        return u_BTD, mixed_BTND, b_out_BTN, own_BTNC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        b_BTN, own_BTNC, kept, *others = ctx.saved_tensors
        given, start, weights, outputs = _unpacked(tuple(others), ctx.n_output)
        du_BTD, dh_BTND, db_BTN = (grad.contiguous() for grad in grads[:3])
        dh, db, dy, dw_CD, small_3NC = hyperconn_read_backward(
            start, weights, outputs, b_BTN, *given[:3], own_BTNC, kept, du_BTD, dh_BTND, db_BTN, ctx.eps
        )
        dscale_C = small_3NC[1].sum(0)
        dscale_2 = torch.stack((dscale_C[:-1].sum(), dscale_C[-1]))
        dgiven = Given(dw_CD, small_3NC[2].sum(0), dscale_2, small_3NC[0, :, :-1], small_3NC[0, :, -1])
        waited = (db, dy) if outputs else (None, None)
        return None, None, dh, *waited, *dgiven, *[None] * (len(others) - len(dgiven))


def _unpacked(others: tuple[Tensor, ...], n_output: int) -> tuple[Given, Tensor, list[Tensor], list[Tensor]]:
    given, start, rest = Given(*others[:5]), others[5], list(others[6:])
    return given, start, rest[:n_output], rest[n_output:]
