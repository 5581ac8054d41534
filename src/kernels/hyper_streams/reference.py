"""What the hyper-connection strategies share: n streams of full width, mixed and written to by weights.

    site k:   u = A_m^T H,  H' = A_r^T H     (read)      H <- H' + B y     (write)      out = mean_i H_i

The columns of A [N, N + 1] are A_m (what the sublayer is given) and A_r (what the streams become). Weights
are constants, or depend on the token: A [B, T, N, N + 1], B [B, T, N].

The streams are N times as wide as a hidden state, so it is the passes over them that cost: mixing and writing
are autograd functions that make no tensor of their size but their results. They keep H, A, B and y. A
compiler is given the plain form, which it differentiates and fuses itself.

Source: Zhu et al., "Hyper-Connections" (arXiv 2409.19606), section 2 and algorithm 2.
The paper sums the streams at the end; the mean is the same model up to the final norm's eps, and exactly
vanilla at init.
Shape letters: N streams, M columns of a weight, J sources (the embedding, then each site's output).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from src.kernels.hyper_streams.recompute import Replay
from src.residual.base import Site, StreamSpec


class Streams(NamedTuple):
    """The streams, the weights with which the sublayer being visited writes to them, and what it writes.

    Its output may wait here for the next read, which can then write, weigh and mix in one pass.
    """

    h_BTND: Tensor
    b: Tensor  # [N] static, [B, T, N] dynamic
    y_BTD: Tensor | None = None  # waiting
    replay: Replay | None = None  # where kernels serve: what makes the streams again


class SiteWeights(NamedTuple):
    """A site's weights: A [N, N + 1] and B [N], static or by token with [B, T] in front."""

    a: Tensor
    b: Tensor


def room_for_read(h_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what a kernel reads off the streams: u [B, T, D], the mixed streams, B [B, T, N]."""
    B, T, N, D = h_BTND.shape
    return h_BTND.new_empty(B, T, D), torch.empty_like(h_BTND), h_BTND.new_empty(B, T, N)


def require_streams(n_stream: int) -> None:
    """Refuse one stream, which is worse than none."""
    if n_stream < 2:
        raise ValueError(
            f"residual.n_stream must be at least 2, got {n_stream}; for one stream use residual=vanilla"
        )


def stored_type(stream_dtype: str) -> torch.dtype | None:
    """That of the streams in memory; None: the embedding's."""
    if stream_dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"residual.stream_dtype must be float32 or bfloat16, got {stream_dtype}; float32 rounds nothing"
        )
    return torch.bfloat16 if stream_dtype == "bfloat16" else None


def in_type(state: Streams, dtype: torch.dtype | None) -> Streams:
    """With streams of that type, if any."""
    return state if dtype is None else state._replace(h_BTND=state.h_BTND.to(dtype))


def static_mixing(spec: StreamSpec, n_stream: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A [S, N, N + 1]: site k reads stream k mod N and leaves all as they are; B [S, N] of ones."""
    a_SNM = torch.zeros(spec.n_site, n_stream, n_stream + 1)
    for site in spec.sites:
        a_SNM[site.index, site.index % n_stream, 0] = 1.0
    a_SNM[:, :, 1:] = torch.eye(n_stream)
    return nn.Parameter(a_SNM), nn.Parameter(torch.ones(spec.n_site, n_stream))


def scale_output_(sublayer: nn.Module, scale: float) -> None:
    """Scale the initial weight of a sublayer's output projection."""
    sublayer.get_parameter("c_proj.weight").mul_(scale)


def widen(x0_BTD: Tensor, n_stream: int, b: Tensor) -> Streams:
    """N copies of the embedding."""
    return Streams(x0_BTD.unsqueeze(2).expand(-1, -1, n_stream, -1), b, None, Replay(x0_BTD))


def mix(a: Tensor, h_BTND: Tensor) -> tuple[Tensor, Tensor]:
    """A^T H, split into what the sublayer is given [B, T, D] and what the streams become [B, T, N, D]."""
    if torch.compiler.is_compiling():
        return split_blend(a, h_BTND)
    return cast(tuple[Tensor, Tensor], _Mix.apply(a, h_BTND))  # type: ignore[no-untyped-call]  # torch's


def write_streams(state: Streams, y_BTD: Tensor) -> Streams:
    """H' + B y."""
    return Streams(written(state._replace(y_BTD=y_BTD)), state.b)


def written(state: Streams) -> Tensor:
    """The streams, with the output that waits."""
    if state.y_BTD is None:
        return state.h_BTND
    given = state.h_BTND, state.b, state.y_BTD.to(state.h_BTND.dtype)
    if torch.compiler.is_compiling():
        return _written(*given)
    return cast(Tensor, _Write.apply(*given))  # type: ignore[no-untyped-call]  # torch's


def stream_mixing(
    sites: tuple[Site, ...],
    x0_BTD: Tensor,
    y_BTD: tuple[Tensor, ...],
    n_stream: int,
    weights: Callable[[int, Tensor], SiteWeights],
    end: Callable[[Tensor], Tensor],
) -> Tensor:
    """`ResidualStrategy.mixing` for streams, from each site's weights and those [N] or [B, T, N] of the end.

    Every stream is followed as a sum of sources, token by token; the means are taken last.
    """
    n_source = len(y_BTD) + 1
    h_BTND = x0_BTD.unsqueeze(2).expand(-1, -1, n_stream, -1)
    share_BTNJ = x0_BTD.new_zeros(*h_BTND.shape[:3], n_source)
    share_BTNJ[..., 0] = 1.0
    rows = []
    for k, (site, output_BTD) in enumerate(zip(sites, y_BTD, strict=True)):
        a, b = weights(site.index, h_BTND)
        read_BTJ, share_BTNJ = split_blend(a, share_BTNJ)
        rows.append(read_BTJ.mean((0, 1)))
        share_BTNJ[..., k + 1] += b
        h_BTND = _written(split_blend(a, h_BTND)[1], b, output_BTD.to(h_BTND.dtype))
    out_BTJ = blend(end(h_BTND).unsqueeze(-1), share_BTNJ).squeeze(2)
    return torch.stack([*rows, out_BTJ.mean((0, 1))])


def blended(weight: Tensor, h_BTND: Tensor) -> Tensor:
    """sum_i weight[..., i, :] H_i under weights [..., N, M]: [B, T, M, D]; keeps both for the backward."""
    if torch.compiler.is_compiling():
        return blend(weight, h_BTND)
    return cast(Tensor, _Blend.apply(weight, h_BTND))  # type: ignore[no-untyped-call]  # torch's


def blend(weight: Tensor, h_BTND: Tensor) -> Tensor:
    """sum_i weight[..., i, :] H_i under weights [..., N, M]: [B, T, M, D], in one tensor."""
    first, *others = weight.unsqueeze(-1).unbind(-3)
    out_BTMD = first * h_BTND[:, :, :1]
    for i, column in enumerate(others, start=1):
        out_BTMD.addcmul_(column, h_BTND[:, :, i : i + 1])
    return out_BTMD


def split_blend(a: Tensor, h_BTND: Tensor) -> tuple[Tensor, Tensor]:
    """A^T H by its first column and the others, each in a tensor of its own."""
    return blend(a[..., :1], h_BTND).squeeze(2), blend(a[..., 1:], h_BTND)


def blend_backward(a: Tensor, h_BTND: Tensor, du_BTD: Tensor, dh_BTND: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `split_blend`: [B, T, N, M] by token, and [B, T, N, D]."""
    da_BTNM = torch.cat((dots(du_BTD, h_BTND).unsqueeze(-1), h_BTND @ dh_BTND.transpose(2, 3)), dim=-1)
    through_BTND = blend(a[..., 1:].transpose(-1, -2), dh_BTND)
    return da_BTNM, through_BTND.addcmul_(a[..., :1], du_BTD.unsqueeze(2))


def dots(x_BTD: Tensor, h_BTND: Tensor) -> Tensor:
    """<x, H_i> for every stream, [B, T, N]."""
    return (x_BTD.unsqueeze(2) @ h_BTND.transpose(2, 3)).squeeze(2)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        weight: Tensor,
        h_BTND: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight, h_BTND)
        return blend(weight, h_BTND)

    @staticmethod
    def backward(ctx: Any, dout_BTMD: Tensor) -> tuple[Tensor, Tensor]:
        weight, h_BTND = ctx.saved_tensors
        dweight_BTNM = h_BTND @ dout_BTMD.transpose(2, 3)
        return dweight_BTNM.sum_to_size(weight.shape), blend(weight.transpose(-1, -2), dout_BTMD)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        a: Tensor,
        h_BTND: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, h_BTND)
        return split_blend(a, h_BTND)

    @staticmethod
    def backward(ctx: Any, du_BTD: Tensor, dh_BTND: Tensor) -> tuple[Tensor, Tensor]:
        a, h_BTND = ctx.saved_tensors
        da_BTNM, through_BTND = blend_backward(a, h_BTND, du_BTD, dh_BTND)
        return da_BTNM.sum_to_size(a.shape), through_BTND


def _written(h_BTND: Tensor, b: Tensor, y_BTD: Tensor) -> Tensor:
    return torch.addcmul(h_BTND, b.unsqueeze(-1), y_BTD.unsqueeze(2))


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # autograd's context has no public type
        h_BTND: Tensor,
        b: Tensor,
        y_BTD: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(b, y_BTD)
        return _written(h_BTND, b, y_BTD)

    @staticmethod
    def backward(ctx: Any, dh_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, y_BTD = ctx.saved_tensors
        db = dots(y_BTD.to(dh_BTND.dtype), dh_BTND).sum_to_size(b.shape)
        return dh_BTND, db, blend(b.unsqueeze(-1), dh_BTND).squeeze(2).to(y_BTD.dtype)
