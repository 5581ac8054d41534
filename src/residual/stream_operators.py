"""What the operators that run Triton's kernels on streams share: how they are registered, and how they are launched.

Shape letters: N streams.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any  # what an operator takes and gives, and a kernel, is its own business

import torch
from torch import Tensor
from torch.library import Library

from src.residual.replay import SEGMENT

log = logging.getLogger(__name__)

#: Where the kernels serve; Triton's interpreter runs them on any device.
DEVICES = ("cuda",)
#: Elements of a token's streams; more do not fit a program's registers.
MOST_ELEMENTS = 16384
#: Elements of a thread, and warps of a multiprocessor, for the two directions.
FORWARD, BACKWARD = (64, 12), (32, 8)

_LIBRARY = Library("reslab", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's


def operator(function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The operator of a function, which a compiler calls and does not look into."""
    name = function.__name__.removeprefix("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    tags = torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides
    _LIBRARY.define(f"{name}{schema}", tags=tags)  # type: ignore[no-untyped-call]  # torch's
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]  # torch's
    torch.library.register_fake(f"reslab::{name}", fake, lib=_LIBRARY)
    called: Callable[..., Any] = getattr(torch.ops.reslab, name).default
    return called


def weights_type(streams: torch.dtype) -> torch.dtype:
    """In which a kernel reckons."""
    return torch.float64 if streams == torch.float64 else torch.float32


def fits(h: Tensor, n_stream: int, parameter: Tensor) -> bool:
    """Whether kernels could serve streams like `h`: on a GPU, of a type and width for them."""
    padded = _power_of_two(h.shape[-1])
    return (
        h.device.type in DEVICES
        and h.dtype in SEGMENT
        and parameter.dtype == weights_type(h.dtype)
        and h.shape[-1] % 16 == 0
        and 2 <= n_stream <= 8
        and n_stream * padded <= MOST_ELEMENTS
    )


def failing(name: str, check: Callable[[], float], bound: float) -> str | None:
    """Why kernels are not to be used: what their check raises, or that it finds more than `bound`."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            error = check()
    except Exception as error_:  # a compiler for a machine unknown here may raise anything
        reason = f"{type(error_).__name__}: {error_}".splitlines()[0]
    else:
        if error <= bound:
            return None
        reason = f"they differ from the plain form by {error:.1e} of its size"
    log.warning("the GPU kernels of %s are not used, which costs speed only: %s", name, reason)
    return reason


def launched(kernel: Any, h: Tensor, tokens: int, n_stream: int, direction: tuple[int, int]) -> "Launch":
    """A kernel, with the programs and warps for streams like `h`."""
    padded = _power_of_two(h.shape[-1])
    warps = max(1, min(16, _power_of_two(n_stream * padded // (32 * direction[0]))))
    programs = min(tokens, _multiprocessors(h.device) * max(1, direction[1] // warps))
    return Launch(kernel, programs, warps, h, n_stream)


class Launch:
    """A kernel ready to run; `programs` of them share the tokens."""

    def __init__(self, kernel: Any, programs: int, warps: int, h: Tensor, n_stream: int) -> None:
        self.kernel, self.programs, self.warps, self.h, self.n_stream = kernel, programs, warps, h, n_stream

    def __call__(self, *args: Any, **constants: Any) -> None:
        import triton.language as tl

        D = self.h.shape[-1]
        reckoned = tl.float64 if self.h.dtype == torch.float64 else tl.float32
        tensors = [x for x in args if isinstance(x, Tensor)]
        assert all(x.is_contiguous() for x in tensors)  # the kernels know sizes, not strides
        self.kernel[(self.programs,)](
            *args,
            D=D,
            DP=_power_of_two(D),
            N=self.n_stream,
            **constants,
            TOGETHER=self.h.device.type == "cuda",
            F=reckoned,
            num_warps=self.warps,
            enable_fp_fusion=True,
        )


def padded(tensors: Sequence[Tensor], other: Tensor) -> tuple[Tensor, ...]:
    """As many as a segment may have, so that one kernel serves any number."""
    longest = max(SEGMENT.values())
    first = tensors[0] if tensors else other
    return (*tensors, *[first] * (longest - len(tensors)))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
