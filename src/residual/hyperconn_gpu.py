"""`hyperconn_triton` as operators of torch; they are given the centred projection, the bias in z, and the rest as it is.

Equations: `hyperconn_read.py`, its plain form.

Shape letters: N streams, M = N + 1 columns of A, C = N + 2 columns of W, P programs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.residual.replay import Replay
from src.residual.replayed_read import Grads, Kernels, Numbers, registered
from src.residual.stream_operators import BACKWARD, FORWARD, backward_room, by_token, operator, table_of


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
    by_token(hyperconn_forward, h, tokens, N, FORWARD)(
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

    out = backward_room(start, outputs, dh_BTND, w_CD)
    N, D = dh_BTND.shape[2:]
    table, longest, J = table_of(start, weights, outputs)
    tokens = dh_BTND.shape[:2].numel()
    launch = by_token(hyperconn_backward, dh_BTND, tokens, N, BACKWARD)
    P, C = launch.grid[0], N + 2
    dw_PCD, small_P3NC = w_CD.new_empty(P, C, D), w_CD.new_empty(P, 3, N, C)
    launch(
        start, table, J, own_BTNC if b_BTN is None else b_BTN,
        w_CD, bias_C, scale_2, own_BTNC, kept, du_BTD, dh_BTND, db_BTN,
        *out, dw_PCD, small_P3NC, w_CD.new_empty(P, 2, N, C + 2), tokens, eps,
        **_columns(N), K=longest, COPIES=start.dim() == 3,
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
    out = backward_room(start, outputs, dh_BTND, w_CD)
    return *out, torch.empty_like(w_CD), w_CD.new_empty(3, N, N + 2)


def _columns(n_stream: int) -> dict[str, int]:
    """The powers of two that hold N rows and C + 2 columns."""
    return {"NP": 1 << (n_stream - 1).bit_length(), "CP": 1 << (n_stream + 3).bit_length()}


hyperconn_read = operator(_hyperconn_read, _hyperconn_read_fake)
hyperconn_read_backward = operator(_hyperconn_read_backward, _hyperconn_read_backward_fake)


def _backward(
    replay: Replay,
    b_BTN: Tensor | None,
    parameters: Sequence[Tensor],
    numbers: Numbers,
    grads: Grads,
    constants: tuple[float, ...],
) -> tuple[Tensor, ...]:
    made = (replay.start, list(replay.weights), list(replay.outputs))
    dh, db, dy, dw_CD, small_3NC = hyperconn_read_backward(
        *made, b_BTN, *parameters[:3], *numbers, *grads, *constants
    )
    dscale_C = small_3NC[1].sum(0)
    dscale_2 = torch.stack((dscale_C[:-1].sum(), dscale_C[-1]))
    return dh, db, dy, dw_CD, small_3NC[2].sum(0), dscale_2, small_3NC[0, :, :-1], small_3NC[0, :, -1]


HYPERCONN = registered("hyperconn", Kernels(5, hyperconn_read, _backward))
