"""The read of dynamic hyper-connections, as one autograd function over the streams.

    [p | m] = H w^T;   r = (mean H^2 - m^2 + eps)^-1/2;   z = tanh(r p + bias)
    A = a + scale_A * z_A,   B = b + scale_B * z_B;   u = A_m^T H,  H' = A_r^T H

The norm is folded into the projection: its gain and the subtraction of the mean into the rows of w, whose
last row makes the mean itself, and its bias into `bias`. So a normalised H never exists. The backward has
only H, and computes the weights again; it makes no tensor of H's size but H's gradient.

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2.2, equations 10-13.
Shape letters: N streams, M = N + 1 columns of A, C = N + 2 columns of W, P = C + 1 rows of w, K = B * T * N.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from src.kernels.cpp_build import Kernels, kernels_for
from src.kernels.hyper_streams.dhc_launch import HYPERCONN
from src.kernels.hyper_streams.recompute_read import replayed_read
from src.kernels.hyper_streams.reference import Streams, blend_backward, room_for_read, split_blend, written
from src.kernels.hyper_streams.trial import Trial, asked, fault
from src.kernels.hyper_streams.triton_launch import fits

EPS = 1e-5


class Weights(NamedTuple):
    """A site's parameters: the projection, the norm's gain and bias, the scales of A and B, their static part."""

    w_DC: Tensor
    gain_D: Tensor
    norm_bias_D: Tensor
    scale_2: Tensor
    a_NM: Tensor
    b_N: Tensor


class Dynamic(NamedTuple):
    """What the weights of a token are made of, and they."""

    w_PD: Tensor
    pm_BTNP: Tensor
    r_BTN1: Tensor
    z_BTNC: Tensor
    a_BTNM: Tensor
    b_BTN: Tensor


def read_dynamic(state: Streams, weights: Weights) -> tuple[Tensor, Streams]:
    """What the sublayer is given [B, T, D], and the mixed streams with the weights of its write."""
    if torch.compiler.is_compiling():
        return _plain_read(state, weights)
    kernels = kernels_for(state.h_BTND, "kernels/hyper_streams/dhc", N=state.h_BTND.shape[2])
    function, given = (_Read, (written(state),)) if kernels is None else (_KernelRead, (kernels, *state[:3]))
    out = function.apply(*given, *weights)  # type: ignore[no-untyped-call]  # torch's
    u_BTD, h_BTND, b_BTN = cast(tuple[Tensor, Tensor, Tensor], out)
    return u_BTD, Streams(h_BTND, b_BTN)


def _plain_read(state: Streams, weights: Weights) -> tuple[Tensor, Streams]:
    h_BTND = written(state)
    dynamic = dynamic_weights(h_BTND, weights)
    u_BTD, h_BTND = split_blend(dynamic.a_BTNM, h_BTND)
    return u_BTD, Streams(h_BTND, dynamic.b_BTN)


def read_on_gpu(state: Streams, weights: Weights) -> tuple[Tensor, Streams] | None:
    """The same by a GPU's kernels, or None where they do not serve."""
    if state.replay is None or not fits(state.h_BTND, len(weights.b_N), weights.w_DC):
        return None  # as they do at none after a site where they do not
    if not _gpu_serves(*asked(state)):
        return None
    return replayed_read(HYPERCONN, state, _given(weights), (EPS,))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _gpu_serves(streams: torch.dtype, output: torch.dtype, n: int, d: int, device: str) -> bool:
    return _gpu_fault(Trial(streams, output, n, d, device)) is None


@functools.cache
def _gpu_fault(trial: Trial) -> str | None:
    """Why the GPU's kernels do not serve, asked once."""

    def kernels(state: Streams, weights: Sequence[Tensor]) -> tuple[Tensor, Streams]:
        return replayed_read(HYPERCONN, state, _given(Weights(*weights)), (EPS,))

    def plain(state: Streams, weights: Sequence[Tensor]) -> tuple[Tensor, Streams]:
        return _plain_read(state, Weights(*weights))

    n, d = trial.n_stream, trial.width
    return fault(HYPERCONN, kernels, plain, ((d, n + 2), (d,), (d,), (2,), (n, n + 1), (n,)), trial)


def dynamic_weights(h_BTND: Tensor, weights: Weights) -> Dynamic:
    """The weights of every token, for any number of columns of A (C is one more)."""
    centred_CD = _centred(weights)
    w_PD = torch.cat((centred_CD, torch.full_like(centred_CD[:1], 1 / centred_CD.shape[1])))
    pm_BTNP = F.linear(h_BTND, w_PD)
    square_BTN1 = torch.linalg.vector_norm(h_BTND, dim=-1, keepdim=True).square() / h_BTND.shape[-1]
    r_BTN1 = ((square_BTN1 - pm_BTNP[..., -1:].square()).clamp_min(0) + EPS).rsqrt()
    z_BTNC = torch.addcmul(weights.norm_bias_D @ weights.w_DC, pm_BTNP[..., :-1], r_BTN1).tanh()
    a_BTNM = weights.a_NM + weights.scale_2[0] * z_BTNC[..., :-1]
    b_BTN = weights.b_N + weights.scale_2[1] * z_BTNC[..., -1]
    return Dynamic(w_PD, pm_BTNP, r_BTN1, z_BTNC, a_BTNM, b_BTN)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        h_BTND: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(h_BTND, *weights)
        dynamic = dynamic_weights(h_BTND, Weights(*weights))
        return *split_blend(dynamic.a_BTNM, h_BTND), dynamic.b_BTN

    @staticmethod
    def backward(ctx: Any, du_BTD: Tensor, dh_BTND: Tensor, db_BTN: Tensor) -> tuple[Tensor, ...]:
        h_BTND, *saved = ctx.saved_tensors
        weights = Weights(*saved)
        w_PD, pm_BTNP, r_BTN1, z_BTNC, a_BTNM, _ = dynamic_weights(h_BTND, weights)
        da_BTNM, through_BTND = blend_backward(a_BTNM, h_BTND, du_BTD, dh_BTND)
        dab_BTNC = torch.cat((da_BTNM, db_BTN.unsqueeze(-1)), dim=-1)
        dstatic_NC, dscale_C = dab_BTNC.sum((0, 1)), (dab_BTNC * z_BTNC).sum((0, 1, 2))

        scale_C = torch.cat((weights.scale_2[:1].expand(a_BTNM.shape[-1]), weights.scale_2[1:]))
        dz_BTNC = dab_BTNC * scale_C * (1 - z_BTNC.square())
        dsquare_BTN1 = -0.5 * r_BTN1**3 * (dz_BTNC * pm_BTNP[..., :-1]).sum(-1, keepdim=True)
        dpm_BTNP = torch.cat((dz_BTNC * r_BTN1, -2 * pm_BTNP[..., -1:] * dsquare_BTN1), dim=-1)
        dpm_KP, h_KD = dpm_BTNP.flatten(0, 2), h_BTND.flatten(0, 2)
        through_BTND.view(h_KD.shape).addmm_(dpm_KP, w_PD)
        through_BTND.addcmul_(dsquare_BTN1 * (2 / h_KD.shape[1]), h_BTND)

        dcentred_CD, dbias_C = dpm_KP[:, :-1].t() @ h_KD, dz_BTNC.sum((0, 1, 2))
        return through_BTND, *_parameter_gradients(weights, dcentred_CD, dbias_C, dscale_C, dstatic_NC)


class _KernelRead(torch.autograd.Function):
    """Of the streams before the output that waits is written to them: that, too, happens in the one pass."""

    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        kernels: Kernels,
        h_BTND: Tensor,
        b: Tensor,
        y_BTD: Tensor | None,
        *packed: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h_BTND = h_BTND.contiguous()
        B, T, N, D = h_BTND.shape
        state, out, kept = (h_BTND, b, y_BTD), room_for_read(h_BTND), h_BTND.new_empty(B * T * N, N + 4)
        sizes = (B * T, D, torch.get_num_threads())
        kernels("hyperconn_forward", *state, *_given(Weights(*packed)), *out, kept, *sizes, EPS)
        ctx.save_for_backward(*state, kept, *packed)
        ctx.kernels = kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_BTND, b, y_BTD, kept, *packed = ctx.saved_tensors
        weights, threads = Weights(*packed), torch.get_num_threads()
        B, T, N, D = h_BTND.shape
        dh_BTND, db, dy_BTD = (None if x is None else torch.empty_like(x) for x in (h_BTND, b, y_BTD))
        dcentred_CD, small = h_BTND.new_zeros(threads, N + 2, D), h_BTND.new_zeros(threads, N + 2, N + 2)
        given, sizes = (h_BTND, b, y_BTD, *_given(weights), kept), (B * T, D, threads)
        out = (dh_BTND, db, dy_BTD, dcentred_CD, small)
        ctx.kernels("hyperconn_backward", *given, *(grad.contiguous() for grad in grads), *out, *sizes)
        dcentred_CD, small = dcentred_CD.sum(0), small.sum(0)
        dweights = _parameter_gradients(weights, dcentred_CD, small[-1], small[-2], small[:-2])
        return None, dh_BTND, None if y_BTD is None else db, dy_BTD, *dweights


def _given(weights: Weights) -> tuple[Tensor, ...]:
    """What the kernels are given: the centred projection [C, D], the bias in z, and the rest as it is."""
    bias_C = weights.norm_bias_D @ weights.w_DC
    return _centred(weights).contiguous(), bias_C, weights.scale_2, weights.a_NM, weights.b_N


def _centred(weights: Weights) -> Tensor:
    gained_CD = weights.w_DC.t() * weights.gain_D
    return gained_CD - gained_CD.mean(1, keepdim=True)


def _parameter_gradients(
    weights: Weights, dcentred_CD: Tensor, dbias_C: Tensor, dscale_C: Tensor, dstatic_NC: Tensor
) -> tuple[Tensor, ...]:
    """Of `Weights`, from those of the centred projection, of the bias in z, of the scales by column and of [a | b]."""
    dgained_CD = dcentred_CD - dcentred_CD.mean(1, keepdim=True)
    dw_DC = torch.outer(weights.norm_bias_D, dbias_C).addcmul_(dgained_CD.t(), weights.gain_D.unsqueeze(1))
    dgain_D = (dgained_CD * weights.w_DC.t()).sum(0)
    dscale_2 = torch.stack((dscale_C[:-1].sum(), dscale_C[-1]))
    return dw_DC, dgain_D, weights.w_DC @ dbias_C, dscale_2, dstatic_NC[:, :-1], dstatic_NC[:, -1]
