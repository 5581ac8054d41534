"""State of the hyper-stream strategies, and its operations in eager PyTorch.

The streams are N times as wide as a hidden state, so passes over them are what costs time and memory. Mixing and
writing are therefore autograd functions that allocate no tensor of the streams' size but their results, and save only
H, A, B and y. `torch.compile` gets the reference, which it differentiates and fuses itself.

`write` only notes the output; the next `read` (or `end`) writes it, so that a kernel can write, weigh and mix in one
pass. Arithmetic runs in the wider dtype of streams and weights: streams may be stored in bfloat16 between sites.

Shape letters: N streams, M columns of a weight.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from src.kernels.custom_op import Context
from src.kernels.hyper_streams import reference
from src.kernels.hyper_streams.recompute import Segment
from src.kernels.hyper_streams.reference import SiteWeights


class Streams(NamedTuple):
    """Streams [B, T, N, D], B of the site that is visited, and its output [B, T, D] if it is still to be written."""

    h_BTND: Tensor
    b: Tensor
    y_BTD: Tensor | None = None
    segment: Segment | None = None  # what the kernels recompute the streams from; None: the reference ran


def allocate_read(h_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialized tensors for the results of a read: u [B, T, D], the mixed streams, B [B, T, N]."""
    B, T, N, D = h_BTND.shape
    return h_BTND.new_empty(B, T, D), torch.empty_like(h_BTND), h_BTND.new_empty(B, T, N)


def widen(x0_BTD: Tensor, n_stream: int, dtype: torch.dtype | None = None) -> Streams:
    """Return N copies of the embedding output, without allocating them; `dtype` (default: that of x0) stores them."""
    stored_BTD = x0_BTD if dtype is None else x0_BTD.to(dtype)
    h_BTND = stored_BTD.unsqueeze(2).expand(-1, -1, n_stream, -1)
    return Streams(h_BTND, x0_BTD.new_ones(n_stream), None, Segment(stored_BTD))


def start(h_BTND: Tensor, dtype: torch.dtype | None = None) -> Streams:
    """Return N streams that start apart; `dtype` (default: that of `h`) stores them."""
    stored_BTND = h_BTND if dtype is None else h_BTND.to(dtype)
    return Streams(stored_BTND, h_BTND.new_ones(h_BTND.shape[2]), None, Segment(stored_BTND))


def read(state: Streams, weigh: Callable[[Tensor], SiteWeights]) -> tuple[Tensor, Streams]:
    """Return the sublayer's input [B, T, D] and the mixed streams, by the weights that `weigh` returns for H."""
    h_BTND = settle(state)
    a, b = weigh(h_BTND)
    u_BTD, mixed_BTND = mix(a, h_BTND)
    return u_BTD, Streams(mixed_BTND.to(state.h_BTND.dtype), b)


def write(state: Streams, y_BTD: Tensor) -> Streams:
    """Note the sublayer's output, which the next operation writes to the streams as H + B y."""
    return state._replace(y_BTD=y_BTD.to(state.b.dtype) if state.segment is None else y_BTD)


def settle(state: Streams) -> Tensor:
    """Return the streams with the last output written to them, in the dtype of the arithmetic."""
    dtype = torch.promote_types(state.h_BTND.dtype, state.b.dtype)
    h_BTND = state.h_BTND.to(dtype)
    if state.y_BTD is None:
        return h_BTND
    inputs = h_BTND, state.b, state.y_BTD.to(dtype)
    if torch.compiler.is_compiling():
        return reference.write(*inputs)
    return cast(Tensor, _Write.apply(*inputs))  # type: ignore[no-untyped-call]  # torch's


def end(state: Streams) -> Tensor:
    """Return the mean of the streams, [B, T, D]."""
    return settle(state).mean(2)


def mix(a: Tensor, h_BTND: Tensor) -> tuple[Tensor, Tensor]:
    """Return A^T H: the sublayer's input [B, T, D] and the mixed streams [B, T, N, D]."""
    if torch.compiler.is_compiling():
        return reference.mix(a, h_BTND)
    return cast(tuple[Tensor, Tensor], _Mix.apply(a, h_BTND))  # type: ignore[no-untyped-call]  # torch's


def blend(weight: Tensor, h_BTND: Tensor) -> Tensor:
    """Return sum_i weight[..., i, :] H_i for weights [..., N, M], as one tensor [B, T, M, D]."""
    if torch.compiler.is_compiling():
        return reference.blend(weight, h_BTND)
    return cast(Tensor, _Blend.apply(weight, h_BTND))  # type: ignore[no-untyped-call]  # torch's


def mix_backward(a: Tensor, h_BTND: Tensor, du_BTD: Tensor, dh_BTND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `mix`: of A by token, [B, T, N, M], and of H."""
    da_BTNM = torch.cat((_dots(du_BTD, h_BTND).unsqueeze(-1), h_BTND @ dh_BTND.transpose(2, 3)), dim=-1)
    through_BTND = reference.blend(a[..., 1:].transpose(-1, -2), dh_BTND)
    return da_BTNM, through_BTND.addcmul_(a[..., :1], du_BTD.unsqueeze(2))


def _dots(x_BTD: Tensor, h_BTND: Tensor) -> Tensor:
    """Return <x, H_i> for every stream, [B, T, N]."""
    return (x_BTD.unsqueeze(2) @ h_BTND.transpose(2, 3)).squeeze(2)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, weight: Tensor, h_BTND: Tensor) -> Tensor:
        ctx.save_for_backward(weight, h_BTND)
        return reference.blend(weight, h_BTND)

    @staticmethod
    def backward(ctx: Context, dout_BTMD: Tensor) -> tuple[Tensor, Tensor]:
        weight, h_BTND = ctx.saved_tensors
        dweight_BTNM = h_BTND @ dout_BTMD.transpose(2, 3)
        return dweight_BTNM.sum_to_size(weight.shape), reference.blend(weight.transpose(-1, -2), dout_BTMD)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, a: Tensor, h_BTND: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, h_BTND)
        return reference.mix(a, h_BTND)

    @staticmethod
    def backward(ctx: Context, du_BTD: Tensor, dh_BTND: Tensor) -> tuple[Tensor, Tensor]:
        a, h_BTND = ctx.saved_tensors
        da_BTNM, through_BTND = mix_backward(a, h_BTND, du_BTD, dh_BTND)
        return da_BTNM.sum_to_size(a.shape), through_BTND


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, h_BTND: Tensor, b: Tensor, y_BTD: Tensor) -> Tensor:
        ctx.save_for_backward(b, y_BTD)
        return reference.write(h_BTND, b, y_BTD)

    @staticmethod
    def backward(ctx: Context, dh_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, y_BTD = ctx.saved_tensors
        db = _dots(y_BTD.to(dh_BTND.dtype), dh_BTND).sum_to_size(b.shape)
        return dh_BTND, db, reference.blend(b.unsqueeze(-1), dh_BTND).squeeze(2).to(y_BTD.dtype)
