"""`hyperconn_triton` as operators of torch; they are given the centred projection, the bias in z, and the rest as it is.

Equations: `hyperconn_read.py`, its plain form. KiB that a token moves at a site, of 48 with N = 4, D = 1024, outputs in
bfloat16: 37 forward and 65 backward with streams in float32; 20 and 38 in bfloat16.

Shape letters: N streams, M = N + 1 columns of A, C = N + 2 columns of W, P programs, R rows of shares.
"""

import torch
from torch import Tensor

from src.kernels.custom_op import operator
from src.kernels.hyper_streams.recompute_read import Kernels, registered
from src.kernels.hyper_streams.triton_launch import (
    BACKWARD,
    FORWARD,
    backward_room,
    by_token,
    power_of_two,
    shares_of,
    table_of,
)


def _hyperconn_read(
    h: Tensor,
    b_BTN: Tensor | None,
    y_BTD: Tensor | None,
    shares_BTRN: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u, the mixed streams, B, shares, and to keep the sums of every row; `h` may be the copies' one [B, T, D]."""
    from src.kernels.hyper_streams.dhc_triton import hyperconn_forward

    out = _hyperconn_read_fake(h, b_BTN, y_BTD, shares_BTRN, w_CD, bias_C, scale_2, a_NM, b_N, eps)
    N, tokens = len(b_N), out[0].shape[:2].numel()
    R, _, RP = shares_of(h, y_BTD, shares_BTRN, N)
    launch = by_token(hyperconn_forward, h, tokens, N, FORWARD)
    launch(
        h, *((h, h) if y_BTD is None else (b_BTN, y_BTD)), w_CD, bias_C, scale_2, a_NM, b_N,
        w_CD if shares_BTRN is None else shares_BTRN, R, *out, w_CD.new_empty(launch.grid[0], N, N + 2), tokens, eps,
        **_columns(N), RP=RP, COPIES=h.dim() == 3, FRESH=shares_BTRN is None, WAITS=y_BTD is not None,
    )  # fmt: skip
    return out


def _hyperconn_read_fake(
    h: Tensor,
    b_BTN: Tensor | None,
    y_BTD: Tensor | None,
    shares_BTRN: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, D, N = h.shape[0], h.shape[1], h.shape[-1], len(b_N)
    u_BTD = w_CD.new_empty(B, T, D) if y_BTD is None else torch.empty_like(y_BTD)
    _, R, _ = shares_of(h, y_BTD, shares_BTRN, N)
    b_out_BTN, shares_out_BTRN = w_CD.new_empty(B, T, N), w_CD.new_empty(B, T, R, N)
    return u_BTD, h.new_empty(B, T, N, D), b_out_BTN, shares_out_BTRN, w_CD.new_empty(B, T, N, N + 4)


def _hyperconn_read_backward(
    start: Tensor,
    shares_BTRN: Tensor | None,
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
    kept: Tensor,
    du_BTD: Tensor,
    dh_BTND: Tensor,
    db_BTN: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of h, of B and the output that waited, of w, and the sums over tokens of d[A | B], d[A | B] z and dz."""
    from src.kernels.hyper_streams.dhc_triton import hyperconn_backward

    out = backward_room(start, outputs, dh_BTND, w_CD)
    (N, D), tokens = dh_BTND.shape[2:], dh_BTND.shape[:2].numel()
    launch = by_token(hyperconn_backward, dh_BTND, tokens, N, BACKWARD)
    P, C = launch.grid[0], N + 2
    dw_PCD, small_P3NC = w_CD.new_empty(P, C, D), w_CD.new_empty(P, 3, N, C)
    launch(
        start, kept if shares_BTRN is None else shares_BTRN, table_of(start, outputs), len(outputs),
        kept if b_BTN is None else b_BTN, w_CD, bias_C, scale_2, a_NM, b_N, kept, du_BTD, dh_BTND, db_BTN,
        *out, dw_PCD, small_P3NC, w_CD.new_empty(P, 3, N, C + 2), tokens, eps,
        **_columns(N), COPIES=start.dim() == 3, FRESH=shares_BTRN is None, WAITS=len(outputs) > 0,
    )  # fmt: skip
    return *out, dw_PCD.sum(0), small_P3NC.sum(0)


def _hyperconn_read_backward_fake(
    start: Tensor,
    shares_BTRN: Tensor | None,
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
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
    return {"NP": power_of_two(n_stream), "CP": power_of_two(n_stream + 4)}


hyperconn_read = operator(_hyperconn_read, _hyperconn_read_fake)
hyperconn_read_backward = operator(_hyperconn_read_backward, _hyperconn_read_backward_fake)


def _backward(*args: Tensor | float | None) -> tuple[Tensor, ...]:
    dh, db, dy, dw_CD, small_3NC = hyperconn_read_backward(*args)
    dscale_C = small_3NC[1].sum(0)
    dscale_2 = torch.stack((dscale_C[:-1].sum(), dscale_C[-1]))
    return dh, db, dy, dw_CD, small_3NC[2].sum(0), dscale_2, small_3NC[0, :, :-1], small_3NC[0, :, -1]


HYPERCONN = registered("hyperconn", Kernels(5, hyperconn_read, _backward))
