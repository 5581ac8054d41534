"""Read of dynamic hyper-connections (DHC), as one autograd function over the streams.

DHC folds its LayerNorm into the projection, so that a normalized H never exists: the norm's gain and the subtraction
of the mean go into the rows of w, whose last row computes the mean itself, and the norm's bias goes into `bias`.

    [p | m] = H w^T;   r = (mean H^2 - m^2 + eps)^-1/2;   z = tanh(r p + bias)
    A = a + scale_A * z_A,   B = b + scale_B * z_B;   u = A_m^T H,  H' = A_r^T H

The backward gets H and computes the weights again; it allocates no tensor of H's size but H's gradient. On a GPU it
gets no H either (`recompute.py`). KiB that a token moves there at a site, of 48 with N = 4, D = 1024 and outputs in
bfloat16: 37 forward and 65 backward with streams in float32; 20 and 38 in bfloat16.

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.2, equations 10-13.
Shape letters: N streams, M = N + 1 columns of A, C = N + 2 columns of W, P = C + 1 rows of w (in the kernels' wrappers:
programs), K = B * T * N, R rows of shares.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from src.kernels.autocast import suspend_autocast
from src.kernels.cpp_build import Kernels, Source
from src.kernels.custom_op import Context, operator
from src.kernels.dispatch import Operation
from src.kernels.hyper_streams import reference
from src.kernels.hyper_streams.recompute import ReadKernels, RecomputingRead
from src.kernels.hyper_streams.reference import EPS, SiteWeights
from src.kernels.hyper_streams.streams import Streams, allocate_read, mix_backward, settle
from src.kernels.hyper_streams.triton_launch import (
    BACKWARD,
    FORWARD,
    allocate_gradients,
    allocate_results,
    count_shares,
    next_power_of_two,
    output_table,
    plan_by_token,
    read_case,
    why_not_streams,
)
from src.kernels.hyper_streams.verification import verify_read

SOURCE = Source("kernels/hyper_streams/dhc")


class DHCParameters(NamedTuple):
    """Parameters of a site: projection, gain and bias of the norm, scales of A and B, static A and B."""

    w_DC: Tensor
    gain_D: Tensor
    norm_bias_D: Tensor
    scale_2: Tensor
    a_NM: Tensor
    b_N: Tensor


class Activations(NamedTuple):
    """Intermediate values of the weights of every token, and the weights."""

    w_PD: Tensor
    pm_BTNP: Tensor
    r_BTN1: Tensor
    z_BTNC: Tensor
    a_BTNM: Tensor
    b_BTN: Tensor


def read_dhc(state: Streams, parameters: DHCParameters) -> tuple[Tensor, Streams]:
    """Return the sublayer's input [B, T, D], and the mixed streams with B of the site.

    Args:
        state: N streams, with or without an output to be written first.
        parameters: those of the site.
    """
    compute = parameters.w_DC.dtype
    backend = OPERATION.backend_for(state.h_BTND, **read_case(state, compute))
    if backend == "triton" and state.segment is not None:
        return _read_by_triton(state, parameters)
    if backend == "cpp":
        return _read_by_cpp(state, parameters)
    stored, h_BTND = state.h_BTND.dtype, state.h_BTND.to(torch.promote_types(state.h_BTND.dtype, compute))
    state = state._replace(h_BTND=h_BTND)
    if torch.compiler.is_compiling():
        h_BTND = settle(state)
        activations = compute_activations(h_BTND, parameters)
        (u_BTD, mixed_BTND), b_BTN = reference.mix(activations.a_BTNM, h_BTND), activations.b_BTN
    else:
        out = _Read.apply(settle(state), *parameters)  # type: ignore[no-untyped-call]  # torch's
        u_BTD, mixed_BTND, b_BTN = cast(tuple[Tensor, Tensor, Tensor], out)
    return u_BTD, Streams(mixed_BTND.to(stored), b_BTN)


def dhc_weights(h_BTND: Tensor, parameters: DHCParameters) -> SiteWeights:
    """Return A [B, T, N, M] and B [B, T, N] of every token, for any number of columns of A."""
    activations = compute_activations(h_BTND, parameters)
    return SiteWeights(activations.a_BTNM, activations.b_BTN)


def compute_activations(h_BTND: Tensor, parameters: DHCParameters) -> Activations:
    """Return the weights of every token and the intermediate values that their gradient needs."""
    centered_CD = _center_projection(parameters)
    w_PD = torch.cat((centered_CD, torch.full_like(centered_CD[:1], 1 / centered_CD.shape[1])))
    pm_BTNP = F.linear(h_BTND, w_PD)
    square_BTN1 = torch.linalg.vector_norm(h_BTND, dim=-1, keepdim=True).square() / h_BTND.shape[-1]
    r_BTN1 = ((square_BTN1 - pm_BTNP[..., -1:].square()).clamp_min(0) + EPS).rsqrt()
    bias_C = parameters.norm_bias_D @ parameters.w_DC
    z_BTNC = torch.addcmul(bias_C, pm_BTNP[..., :-1], r_BTN1).tanh()
    a_BTNM = parameters.a_NM + parameters.scale_2[0] * z_BTNC[..., :-1]
    b_BTN = parameters.b_N + parameters.scale_2[1] * z_BTNC[..., -1]
    return Activations(w_PD, pm_BTNP, r_BTN1, z_BTNC, a_BTNM, b_BTN)


def _kernel_parameters(parameters: DHCParameters) -> tuple[Tensor, ...]:
    """Return what the kernels take: the centered projection [C, D], the bias in z, and the rest as it is."""
    with suspend_autocast(parameters.w_DC):
        bias_C = parameters.norm_bias_D @ parameters.w_DC
    centered_CD = _center_projection(parameters).contiguous()
    return centered_CD, bias_C, parameters.scale_2, parameters.a_NM, parameters.b_N


def _center_projection(parameters: DHCParameters) -> Tensor:
    """Return W^T with the norm's gain and the subtraction of the mean in it, [C, D]."""
    gained_CD = parameters.w_DC.t() * parameters.gain_D
    return gained_CD - gained_CD.mean(1, keepdim=True)


def _parameter_gradients(
    parameters: DHCParameters, dcentered_CD: Tensor, dbias_C: Tensor, dscale_C: Tensor, dstatic_NC: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of the parameters from those of w, of the bias in z, of the scale by column and of [a | b]."""
    dgained_CD = dcentered_CD - dcentered_CD.mean(1, keepdim=True)
    dw_DC = torch.outer(parameters.norm_bias_D, dbias_C).addcmul_(dgained_CD.t(), parameters.gain_D.unsqueeze(1))
    dgain_D = (dgained_CD * parameters.w_DC.t()).sum(0)
    dscale_2 = torch.stack((dscale_C[:-1].sum(), dscale_C[-1]))
    return dw_DC, dgain_D, parameters.w_DC @ dbias_C, dscale_2, dstatic_NC[:, :-1], dstatic_NC[:, -1]


# ---- reference: PyTorch, saving H alone


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, h_BTND: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(h_BTND, *parameters)
        activations = compute_activations(h_BTND, DHCParameters(*parameters))
        return *reference.mix(activations.a_BTNM, h_BTND), activations.b_BTN

    @staticmethod
    def backward(ctx: Context, du_BTD: Tensor, dh_BTND: Tensor, db_BTN: Tensor) -> tuple[Tensor, ...]:
        h_BTND, *saved = ctx.saved_tensors
        parameters = DHCParameters(*saved)
        w_PD, pm_BTNP, r_BTN1, z_BTNC, a_BTNM, _ = compute_activations(h_BTND, parameters)
        # Through the mixing: of the weights [A | B], and of H.
        da_BTNM, through_BTND = mix_backward(a_BTNM, h_BTND, du_BTD, dh_BTND)
        dab_BTNC = torch.cat((da_BTNM, db_BTN.unsqueeze(-1)), dim=-1)
        dstatic_NC, dscale_C = dab_BTNC.sum((0, 1)), (dab_BTNC * z_BTNC).sum((0, 1, 2))
        # Through tanh and 1 / deviation to the projection's results [p | m] and to H itself.
        scale_C = torch.cat((parameters.scale_2[:1].expand(a_BTNM.shape[-1]), parameters.scale_2[1:]))
        dz_BTNC = dab_BTNC * scale_C * (1 - z_BTNC.square())
        dsquare_BTN1 = -0.5 * r_BTN1**3 * (dz_BTNC * pm_BTNP[..., :-1]).sum(-1, keepdim=True)
        dpm_BTNP = torch.cat((dz_BTNC * r_BTN1, -2 * pm_BTNP[..., -1:] * dsquare_BTN1), dim=-1)
        dpm_KP, h_KD = dpm_BTNP.flatten(0, 2), h_BTND.flatten(0, 2)
        through_BTND.view(h_KD.shape).addmm_(dpm_KP, w_PD)
        through_BTND.addcmul_(dsquare_BTN1 * (2 / h_KD.shape[1]), h_BTND)
        # Through the projection to its weights.
        dcentered_CD, dbias_C = dpm_KP[:, :-1].t() @ h_KD, dz_BTNC.sum((0, 1, 2))
        return through_BTND, *_parameter_gradients(parameters, dcentered_CD, dbias_C, dscale_C, dstatic_NC)


# ---- cpp


class _CppRead(torch.autograd.Function):
    """Read of streams to which the kernel also writes the last output, in the same pass."""

    @staticmethod
    def forward(
        ctx: Context, h_BTND: Tensor, b: Tensor, y_BTD: Tensor | None, *packed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        h_BTND = h_BTND.contiguous()
        B, T, N, D = h_BTND.shape
        kernels: Kernels = SOURCE.load(h_BTND.dtype, D, N=N)
        state, out, saved = (h_BTND, b, y_BTD), allocate_read(h_BTND), h_BTND.new_empty(B * T * N, N + 4)
        sizes = (B * T, D, torch.get_num_threads())
        inputs = (*state, *_kernel_parameters(DHCParameters(*packed)))
        kernels("dhc_forward", *inputs, *out, saved, *sizes, EPS)
        ctx.save_for_backward(*state, saved, *packed)
        ctx.kernels = kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_BTND, b, y_BTD, saved, *packed = ctx.saved_tensors
        parameters, threads = DHCParameters(*packed), torch.get_num_threads()
        B, T, N, D = h_BTND.shape
        dh_BTND, db, dy_BTD = (None if x is None else torch.empty_like(x) for x in (h_BTND, b, y_BTD))
        dcentered_CD, small = h_BTND.new_zeros(threads, N + 2, D), h_BTND.new_zeros(threads, N + 2, N + 2)
        inputs, sizes = (h_BTND, b, y_BTD, *_kernel_parameters(parameters), saved), (B * T, D, threads)
        out = (dh_BTND, db, dy_BTD, dcentered_CD, small)
        ctx.kernels("dhc_backward", *inputs, *(grad.contiguous() for grad in grads), *out, *sizes)
        dcentered_CD, small = dcentered_CD.sum(0), small.sum(0)
        dparameters = _parameter_gradients(parameters, dcentered_CD, small[-1], small[-2], small[:-2])
        return dh_BTND, None if y_BTD is None else db, dy_BTD, *dparameters


def _read_by_cpp(state: Streams, parameters: DHCParameters) -> tuple[Tensor, Streams]:
    stored, h_BTND = state.h_BTND.dtype, state.h_BTND.to(torch.promote_types(state.h_BTND.dtype, parameters.w_DC.dtype))
    out = _CppRead.apply(h_BTND, *state[1:3], *parameters)  # type: ignore[no-untyped-call]  # torch's
    u_BTD, mixed_BTND, b_BTN = cast(tuple[Tensor, Tensor, Tensor], out)
    return u_BTD, Streams(mixed_BTND.to(stored), b_BTN)


# ---- triton


def _dhc_read(
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
    """Return u, the mixed streams, B, their shares, and sums of every row to save.

    `h` is [B, T, N, D], or the [B, T, D] that all streams are copies of.
    """
    from src.kernels.hyper_streams.dhc_triton import dhc_forward

    out = _dhc_read_fake(h, b_BTN, y_BTD, shares_BTRN, w_CD)
    N, tokens = len(b_N), out[0].shape[:2].numel()
    R, _, RP = count_shares(h, y_BTD, shares_BTRN, N)
    launch = plan_by_token(dhc_forward, h, tokens, N, FORWARD)
    launch(
        h, *((h, h) if y_BTD is None else (b_BTN, y_BTD)), w_CD, bias_C, scale_2, a_NM, b_N,
        w_CD if shares_BTRN is None else shares_BTRN, R, *out, w_CD.new_empty(launch.grid[0], N, N + 2), tokens, eps,
        **_padded_sizes(N), RP=RP, COPIES=h.dim() == 3, FIRST=shares_BTRN is None, PENDING=y_BTD is not None,
    )  # fmt: skip
    return out


def _dhc_read_fake(
    h: Tensor, b_BTN: Tensor | None, y_BTD: Tensor | None, shares_BTRN: Tensor | None, w_CD: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    N = len(w_CD) - 2
    u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN = allocate_results(h, y_BTD, shares_BTRN, w_CD, N)
    return u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN, w_CD.new_empty(*b_out_BTN.shape, N + 4)


def _dhc_read_backward(
    start: Tensor,
    shares_BTRN: Tensor | None,
    outputs: list[Tensor],
    b_BTN: Tensor | None,
    du_BTD: Tensor,
    dh_BTND: Tensor,
    db_BTN: Tensor,
    w_CD: Tensor,
    bias_C: Tensor,
    scale_2: Tensor,
    a_NM: Tensor,
    b_N: Tensor,
    saved: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of h, of B and the last output, of w, and sums over tokens of d[A | B], d[A | B] z, dz."""
    from src.kernels.hyper_streams.dhc_triton import dhc_backward

    out = allocate_gradients(start, outputs, dh_BTND, w_CD)
    (N, D), tokens = dh_BTND.shape[2:], dh_BTND.shape[:2].numel()
    launch = plan_by_token(dhc_backward, dh_BTND, tokens, N, BACKWARD)
    P, C = launch.grid[0], N + 2
    dw_PCD, small_P3NC = w_CD.new_empty(P, C, D), w_CD.new_empty(P, 3, N, C)
    launch(
        start, saved if shares_BTRN is None else shares_BTRN, output_table(start, outputs), len(outputs),
        saved if b_BTN is None else b_BTN, w_CD, bias_C, scale_2, a_NM, b_N, saved, du_BTD, dh_BTND, db_BTN,
        *out, dw_PCD, small_P3NC, w_CD.new_empty(P, 3, N, C + 2), tokens, eps,
        **_padded_sizes(N), COPIES=start.dim() == 3, FIRST=shares_BTRN is None, PENDING=len(outputs) > 0,
    )  # fmt: skip
    return *out, dw_PCD.sum(0), small_P3NC.sum(0)


def _padded_sizes(n_stream: int) -> dict[str, int]:
    """Return the powers of two that hold N rows and C + 2 columns."""
    return {"NP": next_power_of_two(n_stream), "CP": next_power_of_two(n_stream + 4)}


dhc_read = operator(_dhc_read, _dhc_read_fake)
dhc_read_backward = operator(
    _dhc_read_backward,
    lambda start, shares, outputs, b, du, dh, db, w, *_: (
        *allocate_gradients(start, outputs, dh, w), torch.empty_like(w), w.new_empty(3, dh.shape[2], len(w))
    ),
)  # fmt: skip


def _triton_backward(*args: Tensor | float | None) -> tuple[Tensor, ...]:
    dh, db, dy, dw_CD, small_3NC = dhc_read_backward(*args)
    dscale_C = small_3NC[1].sum(0)
    dscale_2 = torch.stack((dscale_C[:-1].sum(), dscale_C[-1]))
    return dh, db, dy, dw_CD, small_3NC[2].sum(0), dscale_2, small_3NC[0, :, :-1], small_3NC[0, :, -1]


_recomputing_read = RecomputingRead("dhc", ReadKernels(5, dhc_read, _triton_backward))


def _read_by_triton(state: Streams, parameters: DHCParameters) -> tuple[Tensor, Streams]:
    u_BTD, mixed_BTND, b_BTN, segment = _recomputing_read(*state, _kernel_parameters(parameters), (EPS,))
    return u_BTD, Streams(mixed_BTND, b_BTN, None, segment)


# ---- dispatch


def _why_not_cpp(device: torch.device, dtype: torch.dtype, **case: Any) -> str | None:
    reason = SOURCE.why_not(device, case["compute"], width=case["width"], N=case["n_stream"])
    return reason or _verify(_read_by_cpp, device, dtype, case)


def _why_not_triton(device: torch.device, dtype: torch.dtype, **case: Any) -> str | None:
    return why_not_streams(dtype, case, max_streams=8) or _verify(_read_by_triton, device, dtype, case)


def _verify(
    kernel: Callable[[Streams, DHCParameters], tuple[Tensor, Streams]],
    device: torch.device,
    dtype: torch.dtype,
    case: dict[str, Any],
) -> str | None:
    n, d = case["n_stream"], case["width"]
    return verify_read(
        lambda state, parameters: kernel(state, DHCParameters(*parameters)),
        lambda h_BTND, parameters: reference.dhc_weights(h_BTND, *DHCParameters(*parameters)),
        ((d, n + 2), (d,), (d,), (2,), (n, n + 1), (n,)),
        device,
        dtype,
        case,
    )


OPERATION = Operation("read of DHC", cpp=_why_not_cpp, triton=_why_not_triton, residual=True)
