"""Activation recomputation for reads by GPU kernels: the streams come again from a segment's first streams.

    u, H', B = read(H + B y)                          forward: the kernels pass over the streams once
    H_i = sum_r share_ri start_r + sum_j share_ji y_j  backward: the same streams, from the segment's start

A site that kept its streams would keep N times as much as its sublayer. Only one site in `SEGMENT` keeps them (the
embedding, which starts the first segment, is kept anyway). Streams are linear in earlier streams and outputs, so all
others follow from the start and the outputs y since, which the sublayers' gradients keep as well. A token keeps N
shares for each of them; the shares of site k + 1 are those of site k, with B, times A_r. Recomputed streams differ
from those of the forward by rounding.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), section 4; that streams are
weighted sums is this repository's use of it.
Shape letters: N streams, R rows of shares: those of the start, then one for each output.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.kernels.custom_op import Context

#: Maximum number of sites in a segment, by the streams' dtype. A site's backward reads half as many outputs, 2 bytes an
#: element, on top of the start; a start is N streams kept. 48 sites keep 2 starts of float32, or 4 of bfloat16.
SEGMENT = {torch.float32: 16, torch.float64: 16, torch.bfloat16: 10}


class Segment(NamedTuple):
    """Streams that a segment starts with, [B, T, N, D] or the [B, T, D] they are copies of, and outputs since.

    `shares` [B, T, R, N] of the streams in start and outputs [B, T, D], as the last of these sites mixed them; None:
    the segment has no site yet.
    """

    start: Tensor
    outputs: tuple[Tensor, ...] = ()
    shares: Tensor | None = None

    @property
    def n_row(self) -> int:
        """Return R."""
        if self.shares is not None:
            return self.shares.shape[2]
        return 1 if self.start.dim() == 3 else self.start.shape[2]


class ReadKernels(NamedTuple):
    """Kernels of one kind of read.

    forward(h, b, y, shares, *parameters, *constants) -> u, mixed streams, B, their shares, and tensors to save.
    backward(start, shares, outputs, b, *grads, *parameters, *saved, *constants) -> gradients of h, b, y and each
    parameter. `segment` is the maximum number of sites in a segment, by the streams' dtype.
    """

    n_parameter: int
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    segment: Mapping[torch.dtype, int] = SEGMENT


class RecomputingRead:
    """Read whose backward recomputes the streams.

    Args:
        name: finds the kernels from within a compiled graph, which can hold a string but no function.
        kernels: the kernels of this name.
    """

    _kernels: dict[str, ReadKernels] = {}  # noqa: RUF012  # the registry of names

    def __init__(self, name: str, kernels: ReadKernels) -> None:
        self.name, self.kernels = name, kernels
        self._kernels[name] = kernels

    def __call__(
        self,
        h_BTND: Tensor,
        b_BTN: Tensor,
        y_BTD: Tensor | None,
        segment: Segment | None,
        parameters: tuple[Tensor, ...],
        constants: tuple[float, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Segment]:
        """Return the sublayer's input [B, T, D], the mixed streams, B and their segment.

        The input has the dtype of `y`, the output that is still to be written, or that of the parameters without one.
        """
        assert len(parameters) == self.kernels.n_parameter
        if y_BTD is None:
            start = (h_BTND if segment is None else segment.start).contiguous()
            inputs: tuple[Tensor | None, ...] = (start, None, None)
            segment = Segment(start.detach())
        else:
            h_BTND, b_BTN, y_BTD = h_BTND.contiguous(), b_BTN.contiguous(), y_BTD.contiguous()
            inputs = h_BTND, b_BTN, y_BTD
            segment = extend_segment(h_BTND, y_BTD, segment, self.kernels.segment[h_BTND.dtype])
        saved = (segment.shares, segment.start, *segment.outputs)
        u_BTD, mixed_BTND, b_out_BTN, shares_BTRN = _read(self.name, constants, *inputs, *parameters, *saved)
        return u_BTD, mixed_BTND, b_out_BTN, segment._replace(shares=shares_BTRN.detach())


def extend_segment(h_BTND: Tensor, y_BTD: Tensor, segment: Segment | None, max_sites: int) -> Segment:
    """Return the segment of streams `h` with `y` written to them: a new one if `segment` is full or of other dtypes."""
    y_BTD = y_BTD.detach()
    if segment is None or len(segment.outputs) == max_sites or _has_other_dtype(segment, y_BTD):
        return Segment(h_BTND.detach(), (y_BTD,))
    return segment._replace(outputs=(*segment.outputs, y_BTD))


def _has_other_dtype(segment: Segment, y_BTD: Tensor) -> bool:
    return len(segment.outputs) > 0 and segment.outputs[0].dtype != y_BTD.dtype


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # torch's
def _read(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], _Read.apply(*args))  # type: ignore[no-untyped-call]  # torch's


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        name: str,
        constants: tuple[float, ...],
        h: Tensor,
        b_BTN: Tensor | None,
        y_BTD: Tensor | None,
        *others: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kernels = RecomputingRead._kernels[name]
        parameters, shares_BTRN = others[: kernels.n_parameter], others[kernels.n_parameter]
        out = kernels.forward(h, b_BTN, y_BTD, shares_BTRN, *parameters, *constants)
        u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN, *saved = out
        ctx.save_for_backward(b_BTN, *others, *saved)
        ctx.kernels, ctx.constants, ctx.n_other = kernels, constants, len(others)
        ctx.mark_non_differentiable(shares_out_BTRN)
        return u_BTD, mixed_BTND, b_out_BTN, shares_out_BTRN

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        b_BTN, *tensors = ctx.saved_tensors
        others, saved, n = tensors[: ctx.n_other], tensors[ctx.n_other :], ctx.kernels.n_parameter
        parameters, (shares_BTRN, start, *outputs) = others[:n], others[n:]
        of_results = (grad.contiguous() for grad in grads[:3])
        dh, db, dy, *dparameters = ctx.kernels.backward(
            start, shares_BTRN, outputs, b_BTN, *of_results, *parameters, *saved, *ctx.constants
        )
        of_output = (db, dy) if outputs else (None, None)
        return None, None, dh, *of_output, *dparameters, *[None] * (len(others) - n)
