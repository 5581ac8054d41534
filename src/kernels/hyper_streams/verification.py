"""Verification of the kernels that read hyper streams, before their first use.

Shape letters: N streams.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.kernels.dispatch import verify
from src.kernels.hyper_streams.reference import SiteWeights
from src.kernels.hyper_streams.streams import Streams, read, widen

VERIFIED_TOKENS, VERIFIED_SITES = 19, 3
#: Rounding explains a tenth of it, a wrong kernel is off by more than ten times as much.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}

Read = Callable[[Streams, Sequence[Tensor]], tuple[Tensor, Streams]]


def verify_read(
    kernel: Read,
    weigh: Callable[[Tensor, Sequence[Tensor]], SiteWeights],
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype,
    case: Mapping[str, Any],
) -> str | None:
    """Return how a read's kernels differ from the reference over three sites in a row, or None.

    The streams start as copies of one row, and as streams of their own with an output to be written.

    Args:
        kernel: the read of a state with a site's parameters.
        weigh: the site's weights from H and its parameters, in PyTorch.
        shapes: of the parameters; the first one's scale is width^-1/2, like all others' here.
        device: where the kernels run.
        dtype: of the streams.
        case: what `read_case` returns.
    """
    width, n, compute, output = (case[key] for key in ("width", "n_stream", "compute", "output"))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = compute, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

    def visit_sites(read: Read, output: torch.dtype, *tensors: Tensor) -> list[Tensor]:
        *entering, parameters = *tensors[: -len(shapes)], tensors[-len(shapes) :]
        h, b, y = entering if len(entering) > 1 else (entering[0], None, None)
        x0 = h.to(torch.promote_types(h.dtype, compute))
        state = widen(x0, n, h.dtype) if b is None else Streams(h, b, y)
        inputs = []
        for k in range(VERIFIED_SITES):
            u_BTD, state = read(state, parameters)
            inputs.append(u_BTD)
            state = state._replace(y_BTD=(u_BTD * (k + 1) / 2).to(output))
        return [*inputs, state.h_BTND, state.b]

    def read_reference(state: Streams, parameters: Sequence[Tensor]) -> tuple[Tensor, Streams]:
        return read(state, lambda h_BTND: weigh(h_BTND, parameters))

    parameters = [draw(*shape, scale=width**-0.5) for shape in shapes]
    rows = (1, VERIFIED_TOKENS)
    copies = [draw(*rows, width, dtype=dtype)]
    streams = [draw(*rows, n, width, dtype=dtype), draw(*rows, n), draw(*rows, width, dtype=output)]
    return verify(
        functools.partial(visit_sites, kernel, output),
        functools.partial(visit_sites, read_reference, torch.float64),
        [[*copies, *parameters], [*streams, *parameters]],
        max(TOLERANCE[dtype], TOLERANCE[output]),
    )
