"""`mhc_triton`, `mhc_mix_triton` and `mhc_pull_triton` as operators of torch.

Equations: `mhc_read.py`. KiB that a token moves at a site, of 48 with N = 4, D = 1024, outputs in bfloat16: 55 forward
and 97 backward with streams in float32; 31 and 54 in bfloat16. The projection is as wide as all streams, so tiles of
tokens share it, and the streams are read once for it and once more to be mixed.

Shape letters: M tokens of a tile, E columns of a chunk of D, N streams, C = N * N + 2 * N columns of phi, V = N * D,
R rows of shares.
"""

from math import isqrt

import torch
from torch import Tensor

from src.kernels.custom_op import operator
from src.kernels.hyper_streams.recompute_read import Kernels, registered
from src.kernels.hyper_streams.triton_launch import (
    BACKWARD,
    FORWARD,
    Launch,
    backward_room,
    by_token,
    multiprocessors,
    power_of_two,
    shares_of,
    table_of,
)

#: Sites of a segment, by the streams' type (`replay.py`): shorter ones, since the backward reads a segment twice. 48
#: sites keep 5 starts of float32 or 11 of bfloat16.
SEGMENT = {torch.float32: 8, torch.float64: 8, torch.bfloat16: 4}
#: More streams have more columns of phi than a program holds.
MOST_STREAMS = 4
#: Tokens and columns that a program has at a time, and its warps: the weights, their gradients, what is pulled.
WEIGHTS, LOGITS, PULL = (64, 64, 4), (32, 1), (16, 64, 8)


def _mhc_read(
    h: Tensor,
    b_BTN: Tensor | None,
    y_BTD: Tensor | None,
    shares_BTRN: Tensor | None,
    phi_CV: Tensor,
    scale_3: Tensor,
    bias_C: Tensor,
    n_iteration: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """u, the mixed streams, B, shares; to keep [A | B] and [phi vec(H) | its square]; `h` may be the copies' one row."""
    from src.kernels.hyper_streams.mhc_mix_triton import mhc_mix
    from src.kernels.hyper_streams.mhc_triton import mhc_weights

    out = _mhc_read_fake(h, b_BTN, y_BTD, shares_BTRN, phi_CV, scale_3, bias_C, n_iteration, eps)
    u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN, own_BTNC, kept = out
    N, tokens = own_BTNC.shape[2], u_BTD.shape[:2].numel()
    (M, E, warps), cases = WEIGHTS, {"COPIES": h.dim() == 3, "WAITS": y_BTD is not None}
    given = (h, h, h) if y_BTD is None else (h, b_BTN, y_BTD)
    Launch(mhc_weights, (-(-tokens // M),), warps, h, N)(
        *given, phi_CV, scale_3, bias_C, b_out_BTN, own_BTNC, kept, tokens, n_iteration, eps,
        CP=_columns(N), M=M, E=E, **cases,
    )  # fmt: skip
    R, _, RP = shares_of(h, y_BTD, shares_BTRN, N)
    by_token(mhc_mix, h, tokens, N, FORWARD)(
        *given, own_BTNC, own_BTNC if shares_BTRN is None else shares_BTRN, R, u_BTD, mixed_BTND, shares_out_BTRN,
        tokens, NP=power_of_two(N), RP=RP, FRESH=shares_BTRN is None, **cases,
    )  # fmt: skip
    return out


def _mhc_read_fake(
    h: Tensor,
    b_BTN: Tensor | None,
    y_BTD: Tensor | None,
    shares_BTRN: Tensor | None,
    phi_CV: Tensor,
    scale_3: Tensor,
    bias_C: Tensor,
    n_iteration: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (C, V), B, T, D = phi_CV.shape, h.shape[0], h.shape[1], h.shape[-1]
    N = V // D
    u_BTD = phi_CV.new_empty(B, T, D) if y_BTD is None else torch.empty_like(y_BTD)
    _, R, _ = shares_of(h, y_BTD, shares_BTRN, N)
    b_out_BTN, shares_out_BTRN = phi_CV.new_empty(B, T, N), phi_CV.new_empty(B, T, R, N)
    kept = phi_CV.new_empty(B, T, N, N + 2), phi_CV.new_empty(B, T, C + 1)
    return u_BTD, h.new_empty(B, T, N, D), b_out_BTN, shares_out_BTRN, *kept


def _mhc_read_backward(
    start: Tensor,
    shares_BTRN: Tensor | None,
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    phi_CV: Tensor,
    scale_3: Tensor,
    bias_C: Tensor,
    own_BTNC: Tensor,
    kept: Tensor,
    du_BTD: Tensor,
    dh_BTND: Tensor,
    db_BTN: Tensor,
    n_iteration: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of h, of B and the output that waited, of phi, and the sums [2, C] of dlogit and dlogit z r over tokens."""
    from src.kernels.hyper_streams.mhc_mix_triton import mhc_dots
    from src.kernels.hyper_streams.mhc_pull_triton import mhc_pull
    from src.kernels.hyper_streams.mhc_triton import mhc_weights_backward

    (B, T, N, D), C = dh_BTND.shape, len(bias_C)
    tokens, b = B * T, own_BTNC if b_BTN is None else b_BTN
    shares = own_BTNC if shares_BTRN is None else shares_BTRN
    replayed = (start, shares, table_of(start, outputs), len(outputs), b)
    cases = {"COPIES": start.dim() == 3, "FRESH": shares_BTRN is None, "WAITS": len(outputs) > 0}
    da = phi_CV.new_empty(tokens, N, N + 1)
    by_token(mhc_dots, dh_BTND, tokens, N, BACKWARD)(*replayed, du_BTD, dh_BTND, da, tokens, **cases)

    (M, warps), left = LOGITS, torch.empty_like(kept)
    tiles = -(-tokens // M)
    small_P2C, room = phi_CV.new_empty(tiles, 2, C), phi_CV.new_empty(tiles, n_iteration, 2 * N, M)
    Launch(mhc_weights_backward, (tiles,), warps, dh_BTND, N)(
        scale_3, bias_C, kept, da, db_BTN, left, small_P2C, room, tokens, n_iteration, eps, M=M
    )

    M, E, warps = PULL
    chunks = -(-D // E)
    programs = min(-(-tokens // M), max(1, multiprocessors(start.device) // chunks))
    dh, db, dy = backward_room(start, outputs, dh_BTND, phi_CV)
    db_parts, dphi_PCV = phi_CV.new_empty(chunks, *db.shape), phi_CV.new_empty(programs, *phi_CV.shape)
    Launch(mhc_pull, (chunks, programs), warps, dh_BTND, N)(
        *replayed, phi_CV, own_BTNC, left, du_BTD, dh_BTND,
        dh, db_parts, dy, dphi_PCV, tokens, CP=_columns(N), M=M, E=E, **cases,
    )  # fmt: skip
    return dh, db_parts.sum(0), dy, dphi_PCV.sum(0), small_P2C.sum(0)


def _mhc_read_backward_fake(
    start: Tensor,
    shares_BTRN: Tensor | None,
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    phi_CV: Tensor,
    scale_3: Tensor,
    bias_C: Tensor,
    own_BTNC: Tensor,
    kept: Tensor,
    du_BTD: Tensor,
    dh_BTND: Tensor,
    db_BTN: Tensor,
    n_iteration: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    out = backward_room(start, outputs, dh_BTND, phi_CV)
    return *out, torch.empty_like(phi_CV), phi_CV.new_empty(2, len(bias_C))


def _columns(n_stream: int) -> int:
    """A power of two that holds the columns of phi."""
    return max(16, power_of_two(n_stream * n_stream + 2 * n_stream))


mhc_read = operator(_mhc_read, _mhc_read_fake)
mhc_read_backward = operator(_mhc_read_backward, _mhc_read_backward_fake)


def _backward(*args: Tensor | float | None) -> tuple[Tensor, ...]:
    *dgiven, small_2C = mhc_read_backward(*args)
    N = isqrt(small_2C.shape[1] + 1) - 1  # (N + 1)^2 = C + 1
    dscale_3 = torch.stack([part.sum() for part in small_2C[1].split((N, N, N * N))])
    return *dgiven, dscale_3, small_2C[0]


MHC = registered("mhc", Kernels(3, mhc_read, _backward, SEGMENT))
