"""Kernels tried against their plain form on the device that they are for, before they are trusted.

Three sites in a row, from streams that are all copies and from streams that are not: values, and the gradients
of all that enters, on a few rows. A compiler asks once, while it traces.

Shape letters: N streams.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from src.kernels.dispatch import failing
from src.kernels.hyper_streams.reference import Streams, in_type, widen
from src.kernels.hyper_streams.triton_launch import weights_type

Read = Callable[[Streams, Sequence[Tensor]], tuple[Tensor, Streams]]

ROWS, SITES = 19, 3
#: Relative to the largest of a tensor. Rounding makes a tenth of it, a wrong kernel more than ten times.
BOUND = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Trial(NamedTuple):
    """Streams that kernels are to serve: their type, that of the sublayers' outputs, N, D, and the device."""

    streams: torch.dtype
    output: torch.dtype
    n_stream: int
    width: int
    device: str

    def numbers(self, seed: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal ones, the same for every caller."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(self.device, dtype or weights_type(self.streams))


def asked(state: Streams) -> tuple[torch.dtype, torch.dtype, int, int, str]:
    """The trial of a read of `state`; where no output waits, they will be bfloat16, which is what GPUs train in."""
    output = torch.bfloat16 if state.y_BTD is None else state.y_BTD.dtype
    return state.h_BTND.dtype, output, *state.h_BTND.shape[2:], state.h_BTND.device.type


def fault(name: str, kernels: Read, plain: Read, shapes: Iterable[tuple[int, ...]], trial: Trial) -> str | None:
    """Why the kernels do not serve, or None; parameters of these shapes, the first D times as wide as it is long."""
    scale = trial.width**-0.5
    weights = [scale * trial.numbers(k, *shape) for k, shape in enumerate(shapes)]

    def error() -> float:
        worst = 0.0
        for copies in (True, False):
            ours, theirs = _results(kernels, weights, trial, copies), _results(stored, weights, trial, copies)
            for one, other in zip(ours, theirs, strict=True):
                size = other.abs().amax().clamp_min(torch.finfo(other.dtype).tiny)
                worst = max(worst, float(((one - other).abs().amax() / size).nan_to_num(nan=torch.inf)))
        return worst

    def stored(state: Streams, weights: Sequence[Tensor]) -> tuple[Tensor, Streams]:
        u_BTD, state = plain(in_type(state, weights_type(trial.streams)), weights)
        return u_BTD, in_type(state, trial.streams)

    bound = max(BOUND[trial.streams], BOUND[trial.output])
    return failing(name, error, bound)


def _results(read: Read, weights: list[Tensor], trial: Trial, copies: bool) -> list[Tensor]:
    N, D = trial.n_stream, trial.width
    leaves = [weight.clone().requires_grad_() for weight in weights]
    if copies:
        entering = [trial.numbers(10, 1, ROWS, D, dtype=trial.streams).requires_grad_()]
        state = widen(entering[0], N, entering[0].new_ones(N))
    else:
        h, y = (trial.numbers(seed, 1, ROWS, *shape) for seed, shape in ((11, (N, D)), (12, (D,))))
        b = trial.numbers(13, 1, ROWS, N).requires_grad_()
        h, y = h.to(trial.streams).requires_grad_(), y.to(trial.output).requires_grad_()
        entering, state = [h, b, y], Streams(h, b, y)
    total, given = torch.zeros((), device=trial.device), []
    for k in range(SITES):
        u_BTD, state = read(state, leaves)
        given.append(u_BTD)
        state = state._replace(y_BTD=(u_BTD * (k + 1) / 2).to(trial.output))
    for k, x in enumerate((*given, state.h_BTND, state.b)):
        total = total + (x * trial.numbers(20 + k, *x.shape)).sum()
    grads = torch.autograd.grad(total, [*entering, *leaves])
    return [x.detach().to(weights_type(trial.streams)) for x in (*given, state.h_BTND, state.b, *grads)]
