"""Read of manifold-constrained hyper-connections (mHC), as one autograd function over the streams.

    H <- H + B y;   z = (phi vec(H)) r,  r = (mean vec(H)^2 + eps)^-1/2
    pre = sigmoid(s_0 z + bias),  post = 2 sigmoid(s_1 z + bias),  res = sinkhorn(s_2 z + bias)
    u = pre . H,  H' = res H

On a CPU the backward gets the streams before the output y, the output, and phi vec(H) and r, and computes the weights
again. On a GPU it gets no streams (`recompute.py`). KiB that a token moves there at a site, of 48 with N = 4, D = 1024
and outputs in bfloat16: 55 forward and 97 backward with streams in float32; 31 and 54 in bfloat16. The projection is as
wide as all streams, so tiles of tokens share it: one kernel reads the streams for it, another to mix them.

Source: Xie et al., "mHC" (arXiv 2512.24880), section 4.3 (kernel fusion, recomputation).
Shape letters: N streams, C = N * N + 2 * N columns of phi, V = N * D, M tokens of a tile, E columns of a tile of D,
R rows of shares.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.cpp_build import Kernels, Source
from src.kernels.custom_op import Context, operator
from src.kernels.dispatch import Operation
from src.kernels.hyper_streams import reference
from src.kernels.hyper_streams.projection import mixing_weights, project
from src.kernels.hyper_streams.recompute import ReadKernels, RecomputingRead
from src.kernels.hyper_streams.reference import SiteWeights
from src.kernels.hyper_streams.sinkhorn import sinkhorn
from src.kernels.hyper_streams.streams import Streams, allocate_read, read
from src.kernels.hyper_streams.triton_launch import (
    BACKWARD,
    FORWARD,
    Launch,
    allocate_gradients,
    allocate_results,
    count_multiprocessors,
    count_shares,
    next_power_of_two,
    output_table,
    plan_by_token,
    read_case,
    why_not_streams,
)
from src.kernels.hyper_streams.verification import verify_read

SOURCE = Source("kernels/hyper_streams/mhc")
#: Maximum number of sites in a segment, by the streams' dtype: fewer than in `recompute.py`, since the backward reads a
#: segment twice. 48 sites keep 5 starts of float32 or 11 of bfloat16.
SEGMENT = {torch.float32: 8, torch.float64: 8, torch.bfloat16: 4}
#: Maximum number of streams on a GPU: more have more columns of phi than a program holds.
MAX_STREAMS = 4
#: Tokens and columns that a program holds at a time, and its warps: weights, their gradients, gradients of the streams.
WEIGHTS, LOGITS, GRADIENTS = (64, 64, 4), (32, 1), (16, 64, 8)


class MHCParameters(NamedTuple):
    """Parameters of a site: projection, scales of pre, post and res, biases."""

    phi_CV: Tensor
    scale_3: Tensor
    bias_C: Tensor


def read_mhc(state: Streams, parameters: MHCParameters, n_iteration: int, eps: float) -> tuple[Tensor, Streams]:
    """Return the sublayer's input [B, T, D], and the mixed streams with B of the site.

    Args:
        state: N streams, with or without an output to be written first.
        parameters: those of the site.
        n_iteration: rounds of Sinkhorn-Knopp.
        eps: added to the mean square of vec(H).
    """
    compute = parameters.phi_CV.dtype
    case = read_case(state, compute)
    backend = OPERATION.backend_for(state.h_BTND, **case, n_iteration=n_iteration, eps=eps)
    if backend == "triton" and state.segment is not None:
        return _read_by_triton(state, parameters, n_iteration, eps)
    if backend == "cpp":
        return _read_by_cpp(state, parameters, n_iteration, eps)
    stored, h_BTND = state.h_BTND.dtype, state.h_BTND.to(torch.promote_types(state.h_BTND.dtype, compute))
    u_BTD, state = read(state._replace(h_BTND=h_BTND), lambda h_BTND: mhc_weights(h_BTND, parameters, n_iteration, eps))
    return u_BTD, state._replace(h_BTND=state.h_BTND.to(stored))


def mhc_weights(h_BTND: Tensor, parameters: MHCParameters, n_iteration: int, eps: float) -> SiteWeights:
    """Return A [B, T, N, N + 1] and B [B, T, N] of every token."""
    B, T, N, _ = h_BTND.shape
    pre_BTN, post_BTN, logit_BTR = project(h_BTND, *parameters, eps)
    res_BTNN = sinkhorn(logit_BTR.reshape(-1, N, N), n_iteration).view(B, T, N, N)
    return SiteWeights(mixing_weights(pre_BTN, res_BTNN), post_BTN)


# ---- cpp


class _CppRead(torch.autograd.Function):
    """Read of streams to which the kernel also writes the last output, in the same pass."""

    @staticmethod
    def forward(
        ctx: Context,
        n_iteration: int,
        eps: float,
        h_BTND: Tensor,
        b: Tensor,
        y_BTD: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h_BTND = h_BTND.contiguous()
        B, T, N, D = h_BTND.shape
        kernels: Kernels = SOURCE.load(h_BTND.dtype, D, N=N)
        inputs, out = (h_BTND, b, y_BTD, *parameters), allocate_read(h_BTND)
        saved = h_BTND.new_empty(B * T, len(parameters[-1]) + 1)
        kernels("mhc_forward", *inputs, *out, saved, B * T, D, torch.get_num_threads(), n_iteration, eps)
        ctx.save_for_backward(*inputs, saved)
        ctx.kernels, ctx.n_iteration = kernels, n_iteration
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, threads = ctx.saved_tensors, torch.get_num_threads()
        h_BTND, b, y_BTD, phi_CV, *_ = inputs
        B, T, N, D = h_BTND.shape
        dh_BTND, db, dy_BTD = (None if x is None else torch.empty_like(x) for x in (h_BTND, b, y_BTD))
        dphi_CV, small_C = h_BTND.new_zeros(threads, *phi_CV.shape), h_BTND.new_zeros(threads, 2, len(phi_CV))
        inputs, out = (*inputs, *(grad.contiguous() for grad in grads)), (dh_BTND, db, dy_BTD, dphi_CV, small_C)
        ctx.kernels("mhc_backward", *inputs, *out, B * T, D, threads, ctx.n_iteration)
        dbias_C, dscale_C = small_C.sum(0)
        dscale_3 = torch.stack([part.sum() for part in dscale_C.split((N, N, N * N))])
        dstate = (dh_BTND, None if y_BTD is None else db, dy_BTD)
        return None, None, *dstate, dphi_CV.sum(0), dscale_3, dbias_C


def _read_by_cpp(state: Streams, parameters: Sequence[Tensor], n_iteration: int, eps: float) -> tuple[Tensor, Streams]:
    stored, h_BTND = state.h_BTND.dtype, state.h_BTND.to(torch.promote_types(state.h_BTND.dtype, parameters[0].dtype))
    inputs = (n_iteration, eps, h_BTND, *state[1:3], *parameters)
    out = _CppRead.apply(*inputs)  # type: ignore[no-untyped-call]  # torch's
    u_BTD, mixed_BTND, b_BTN = cast(tuple[Tensor, Tensor, Tensor], out)
    return u_BTD, Streams(mixed_BTND.to(stored), b_BTN)


# ---- triton


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
    """Return u, the mixed streams, B, their shares; to save, [A | B] and [phi vec(H) | its sum of squares].

    `h` is [B, T, N, D], or the [B, T, D] that all streams are copies of.
    """
    from src.kernels.hyper_streams.mhc_triton import mhc_mix, mhc_weights

    out = _mhc_read_fake(h, b_BTN, y_BTD, shares_BTRN, phi_CV)
    u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN, ab_BTNC, saved = out
    N, tokens = ab_BTNC.shape[2], u_BTD.shape[:2].numel()
    (M, E, warps), cases = WEIGHTS, {"COPIES": h.dim() == 3, "PENDING": y_BTD is not None}
    streams = (h, h, h) if y_BTD is None else (h, b_BTN, y_BTD)
    Launch(mhc_weights, (-(-tokens // M),), warps, h, N)(
        *streams, phi_CV, scale_3, bias_C, b_out_BTN, ab_BTNC, saved, tokens, n_iteration, eps,
        CP=_padded_columns(N), M=M, E=E, **cases,
    )  # fmt: skip
    R, _, RP = count_shares(h, y_BTD, shares_BTRN, N)
    plan_by_token(mhc_mix, h, tokens, N, FORWARD)(
        *streams, ab_BTNC, ab_BTNC if shares_BTRN is None else shares_BTRN, R, u_BTD, mixed_BTND, shares_out_BTRN,
        tokens, NP=next_power_of_two(N), RP=RP, FIRST=shares_BTRN is None, **cases,
    )  # fmt: skip
    return out


def _mhc_read_fake(
    h: Tensor,
    b_BTN: Tensor | None,
    y_BTD: Tensor | None,
    shares_BTRN: Tensor | None,
    phi_CV: Tensor,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, N = *h.shape[:2], phi_CV.shape[1] // h.shape[-1]
    saved = phi_CV.new_empty(B, T, N, N + 2), phi_CV.new_empty(B, T, len(phi_CV) + 1)
    return *allocate_results(h, y_BTD, shares_BTRN, phi_CV, N), *saved


def _mhc_read_backward(
    start: Tensor,
    shares_BTRN: Tensor | None,
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    du_BTD: Tensor,
    dh_BTND: Tensor,
    db_BTN: Tensor,
    phi_CV: Tensor,
    scale_3: Tensor,
    bias_C: Tensor,
    ab_BTNC: Tensor,
    saved: Tensor,
    n_iteration: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of h, of B and the last output, of phi, and sums [2, C] of dlogit, dlogit z over tokens."""
    from src.kernels.hyper_streams.mhc_triton import (
        mhc_mix_backward,
        mhc_stream_gradients,
        mhc_weights_backward,
    )

    (B, T, N, D), C = dh_BTND.shape, len(bias_C)
    tokens, b = B * T, ab_BTNC if b_BTN is None else b_BTN
    shares = ab_BTNC if shares_BTRN is None else shares_BTRN
    recomputed = (start, shares, output_table(start, outputs), len(outputs), b)
    cases = {"COPIES": start.dim() == 3, "FIRST": shares_BTRN is None, "PENDING": len(outputs) > 0}
    da = phi_CV.new_empty(tokens, N, N + 1)
    plan_by_token(mhc_mix_backward, dh_BTND, tokens, N, BACKWARD)(*recomputed, du_BTD, dh_BTND, da, tokens, **cases)

    (M, warps), dsaved = LOGITS, torch.empty_like(saved)
    tiles = -(-tokens // M)
    small_P2C, scratch = phi_CV.new_empty(tiles, 2, C), phi_CV.new_empty(tiles, n_iteration, 2 * N, M)
    Launch(mhc_weights_backward, (tiles,), warps, dh_BTND, N)(
        scale_3, bias_C, saved, da, db_BTN, dsaved, small_P2C, scratch, tokens, n_iteration, eps, M=M
    )

    M, E, warps = GRADIENTS
    column_tiles = -(-D // E)
    programs = min(-(-tokens // M), max(1, count_multiprocessors(start.device) // column_tiles))
    dh, db, dy = allocate_gradients(start, outputs, dh_BTND, phi_CV)
    db_parts, dphi_PCV = phi_CV.new_empty(column_tiles, *db.shape), phi_CV.new_empty(programs, *phi_CV.shape)
    Launch(mhc_stream_gradients, (column_tiles, programs), warps, dh_BTND, N)(
        *recomputed, phi_CV, ab_BTNC, dsaved, du_BTD, dh_BTND,
        dh, db_parts, dy, dphi_PCV, tokens, CP=_padded_columns(N), M=M, E=E, **cases,
    )  # fmt: skip
    return dh, db_parts.sum(0), dy, dphi_PCV.sum(0), small_P2C.sum(0)


def _padded_columns(n_stream: int) -> int:
    """Return a power of two that holds the columns of phi."""
    return max(16, next_power_of_two(n_stream * n_stream + 2 * n_stream))


mhc_read = operator(_mhc_read, _mhc_read_fake)
mhc_read_backward = operator(
    _mhc_read_backward,
    lambda start, shares, outputs, b, du, dh, db, phi, *_: (
        *allocate_gradients(start, outputs, dh, phi), torch.empty_like(phi), phi.new_empty(2, len(phi))
    ),
)  # fmt: skip


def _triton_backward(*args: Tensor | float | None) -> tuple[Tensor, ...]:
    *gradients, small_2C = mhc_read_backward(*args)
    N = isqrt(small_2C.shape[1] + 1) - 1  # (N + 1)^2 = C + 1
    dscale_3 = torch.stack([part.sum() for part in small_2C[1].split((N, N, N * N))])
    return *gradients, dscale_3, small_2C[0]


_recomputing_read = RecomputingRead("mhc", ReadKernels(3, mhc_read, _triton_backward, SEGMENT))


def _read_by_triton(
    state: Streams, parameters: Sequence[Tensor], n_iteration: int, eps: float
) -> tuple[Tensor, Streams]:
    u_BTD, mixed_BTND, b_BTN, segment = _recomputing_read(*state, tuple(parameters), (n_iteration, eps))
    return u_BTD, Streams(mixed_BTND, b_BTN, None, segment)


# ---- dispatch


def _why_not_cpp(device: torch.device, dtype: torch.dtype, **case: Any) -> str | None:
    reason = SOURCE.why_not(device, case["compute"], width=case["width"], N=case["n_stream"])
    return reason or _verify(_read_by_cpp, device, dtype, case)


def _why_not_triton(device: torch.device, dtype: torch.dtype, **case: Any) -> str | None:
    return why_not_streams(dtype, case, MAX_STREAMS) or _verify(_read_by_triton, device, dtype, case)


def _verify(
    kernel: Callable[[Streams, Sequence[Tensor], int, float], tuple[Tensor, Streams]],
    device: torch.device,
    dtype: torch.dtype,
    case: dict[str, Any],
) -> str | None:
    constants, n = (case["n_iteration"], case["eps"]), case["n_stream"]
    return verify_read(
        lambda state, parameters: kernel(state, parameters, *constants),
        lambda h_BTND, parameters: reference.mhc_weights(h_BTND, *MHCParameters(*parameters), *constants),
        ((n * (n + 2), n * case["width"]), (3,), (n * (n + 2),)),
        device,
        dtype,
        case,
    )


OPERATION = Operation("read of mHC", cpp=_why_not_cpp, triton=_why_not_triton, residual=True)
