"""The read of mHC by kernels, as one autograd function over the streams and the output that waits.

    H <- H + B y;   z = (phi vec(H)) r,  r = (mean vec(H)^2 + eps)^-1/2
    pre = sigmoid(s_0 z + bias),  post = 2 sigmoid(s_1 z + bias),  res = sinkhorn(s_2 z + bias)
    u = pre . H,  H' = res H

The backward has only the streams before that output, the output, and z r^-1 and r: it computes the weights again.
It is `projected_streams`, `sinkhorn` and `hyper_streams.mix` in one pass, which are its plain form.

Source: Xie et al., "mHC" (arXiv 2512.24880), section 4.3 (kernel fusion, recomputing).
Shape letters: N streams, C = N * N + 2 * N columns of phi, V = N * D.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.cpp_build import Kernels
from src.kernels.hyper_streams.mhc_launch import MHC, MOST_STREAMS
from src.kernels.hyper_streams.projection import mixing_weights, project
from src.kernels.hyper_streams.recompute_read import replayed_read
from src.kernels.hyper_streams.reference import SiteWeights, Streams, mix, room_for_read, written
from src.kernels.hyper_streams.sinkhorn import sinkhorn
from src.kernels.hyper_streams.trial import Trial, asked, fault
from src.kernels.hyper_streams.triton_launch import fits


class Weights(NamedTuple):
    """A site's parameters: the projection, the scales of pre, post and res, the biases."""

    phi_CV: Tensor
    scale_3: Tensor
    bias_C: Tensor


def read_by_kernels(
    kernels: Kernels, state: Streams, weights: Weights, n_iteration: int, eps: float
) -> tuple[Tensor, Streams]:
    """What the sublayer is given [B, T, D], and the mixed streams with the weights of its write."""
    out = _Read.apply(kernels, n_iteration, eps, *state[:3], *weights)  # type: ignore[no-untyped-call]  # torch's
    u_BTD, h_BTND, b_BTN = cast(tuple[Tensor, Tensor, Tensor], out)
    return u_BTD, Streams(h_BTND, b_BTN)


def read_on_gpu(
    state: Streams, weights: Weights, n_iteration: int, eps: float
) -> tuple[Tensor, Streams] | None:
    """The same by a GPU's kernels, or None where they do not serve."""
    if state.replay is None or not fits(state.h_BTND, state.h_BTND.shape[2], weights.phi_CV, MOST_STREAMS):
        return None  # as they do at none after a site where they do not
    if not _gpu_serves(*asked(state), n_iteration, eps):
        return None
    return replayed_read(MHC, state, weights, (n_iteration, eps))


def site_weights(h_BTND: Tensor, weights: Weights, n_iteration: int, eps: float) -> SiteWeights:
    """The plain form."""
    B, T, N, _ = h_BTND.shape
    pre_BTN, post_BTN, logit_BTR = project(h_BTND, *weights, eps)
    res_BTNN = sinkhorn(logit_BTR.reshape(-1, N, N), n_iteration).view(B, T, N, N)
    return SiteWeights(mixing_weights(pre_BTN, res_BTNN), post_BTN)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _gpu_serves(
    streams: torch.dtype, output: torch.dtype, n: int, d: int, device: str, n_iteration: int, eps: float
) -> bool:
    return _gpu_fault(Trial(streams, output, n, d, device), n_iteration, eps) is None


@functools.cache
def _gpu_fault(trial: Trial, n_iteration: int, eps: float) -> str | None:
    """Why the GPU's kernels do not serve, asked once."""

    def kernels(state: Streams, weights: Sequence[Tensor]) -> tuple[Tensor, Streams]:
        return replayed_read(MHC, state, tuple(weights), (n_iteration, eps))

    def plain(state: Streams, weights: Sequence[Tensor]) -> tuple[Tensor, Streams]:
        h_BTND = written(state)
        a, b = site_weights(h_BTND, Weights(*weights), n_iteration, eps)
        u_BTD, mixed_BTND = mix(a, h_BTND)
        return u_BTD, Streams(mixed_BTND, b)

    n, columns = trial.n_stream, trial.n_stream * (trial.n_stream + 2)
    return fault(MHC, kernels, plain, ((columns, n * trial.width), (3,), (columns,)), trial)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        kernels: Kernels,
        n_iteration: int,
        eps: float,
        h_BTND: Tensor,
        b: Tensor,
        y_BTD: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h_BTND = h_BTND.contiguous()
        B, T, _, D = h_BTND.shape
        given, out = (h_BTND, b, y_BTD, *weights), room_for_read(h_BTND)
        kept = h_BTND.new_empty(B * T, len(weights[-1]) + 1)
        kernels("mhc_forward", *given, *out, kept, B * T, D, torch.get_num_threads(), n_iteration, eps)
        ctx.save_for_backward(*given, kept)
        ctx.kernels, ctx.n_iteration = kernels, n_iteration
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given, threads = ctx.saved_tensors, torch.get_num_threads()
        h_BTND, b, y_BTD, phi_CV, *_ = given
        B, T, N, D = h_BTND.shape
        dh_BTND, db, dy_BTD = (None if x is None else torch.empty_like(x) for x in (h_BTND, b, y_BTD))
        dphi_CV, small_C = h_BTND.new_zeros(threads, *phi_CV.shape), h_BTND.new_zeros(threads, 2, len(phi_CV))
        given, out = (*given, *(grad.contiguous() for grad in grads)), (dh_BTND, db, dy_BTD, dphi_CV, small_C)
        ctx.kernels("mhc_backward", *given, *out, B * T, D, threads, ctx.n_iteration)
        dbias_C, dscale_C = small_C.sum(0)
        dscale_3 = torch.stack([part.sum() for part in dscale_C.split((N, N, N * N))])
        return (
            None,
            None,
            None,
            dh_BTND,
            None if y_BTD is None else db,
            dy_BTD,
            dphi_CV.sum(0),
            dscale_3,
            dbias_C,
        )
