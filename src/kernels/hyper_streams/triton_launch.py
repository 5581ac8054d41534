"""What the operators that run Triton's kernels on streams share: how they are registered, and how they are launched.

Shape letters: N streams.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any  # what an operator takes and gives, and a kernel, is its own business

import torch
from torch import Tensor

from src.kernels.dispatch import residual_wanted
from src.kernels.hyper_streams.recompute import SEGMENT, Replay

#: Devices that kernels serve on besides those of their own: where Triton's interpreter runs them.
DEVICES: tuple[str, ...] = ()
#: Elements of a token's streams; more do not fit a program's registers.
MOST_ELEMENTS = 16384
#: Elements of a thread, and warps of a multiprocessor among which its registers are shared, for the two directions.
FORWARD, BACKWARD = (64, 12), (32, 12)
REGISTERS = 65536  # of a multiprocessor


def weights_type(streams: torch.dtype) -> torch.dtype:
    """In which a kernel reckons."""
    return torch.float64 if streams == torch.float64 else torch.float32


def fits(h: Tensor, n_stream: int, parameter: Tensor, most_streams: int = 8) -> bool:
    """Whether kernels could serve streams like `h`: on a GPU, of a type and width for them."""
    return (
        (residual_wanted(h.device) or h.device.type in DEVICES)
        and h.dtype in SEGMENT
        and parameter.dtype == weights_type(h.dtype)
        and h.shape[-1] % 16 == 0
        and 2 <= n_stream <= most_streams
        and n_stream * power_of_two(h.shape[-1]) <= MOST_ELEMENTS
    )


def by_token(kernel: Any, h: Tensor, tokens: int, n_stream: int, direction: tuple[int, int]) -> "Launch":
    """A kernel whose programs have a token's streams at a time."""
    elements, most_warps = direction
    warps = max(1, min(16, power_of_two(n_stream * power_of_two(h.shape[-1]) // (32 * elements))))
    programs = min(tokens, multiprocessors(h.device) * max(1, most_warps // warps))
    registers = min(255, REGISTERS // (32 * max(most_warps, warps)) // 8 * 8)
    return Launch(kernel, (programs,), warps, h, n_stream, {"maxnreg": registers})


class Launch:
    """A kernel ready to run in a grid of programs, on streams like `h`."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        warps: int,
        h: Tensor,
        n_stream: int,
        options: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.kernel, self.grid, self.h, self.n_stream = kernel, grid, h, n_stream
        self.options = {"num_warps": warps, "enable_fp_fusion": True, **options}

    def __call__(self, *args: Any, **constants: Any) -> None:
        import triton.language as tl

        D = self.h.shape[-1]
        reckoned = tl.float64 if self.h.dtype == torch.float64 else tl.float32
        tensors = [x for x in args if isinstance(x, Tensor)]
        assert all(x.is_contiguous() for x in tensors)  # the kernels know sizes, not strides
        constants |= {"D": D, "DP": power_of_two(D), "N": self.n_stream, "F": reckoned}
        with torch.cuda.device_of(self.h):  # type: ignore[no-untyped-call]  # torch's
            self.kernel[self.grid](*args, **constants, TOGETHER=self.h.device.type == "cuda", **self.options)


def table_of(start: Tensor, outputs: list[Tensor]) -> Tensor:
    """The outputs' addresses on their device, written by a kernel from its arguments: no copy from the host."""
    from src.kernels.hyper_streams.triton_common import listed

    longest = max(SEGMENT.values())
    table = torch.empty(longest, dtype=torch.int64, device=start.device)
    if outputs:
        as_many = (*outputs, *outputs[:1] * (longest - len(outputs)))
        with torch.cuda.device_of(table):  # type: ignore[no-untyped-call]  # torch's
            listed[(1,)](as_many, table, K=longest, num_warps=1, enable_fp_fusion=True)
    return table


def shares_of(h: Tensor, y_BTD: Tensor | None, shares_BTRN: Tensor | None, n: int) -> tuple[int, int, int]:
    """Of a read's shares: the rows given, those it leaves, and the power of two that holds the most of them."""
    given = Replay(h, (), shares_BTRN).n_row
    return given, given + (y_BTD is not None), power_of_two(n + max(SEGMENT.values()))


def backward_room(
    start: Tensor, outputs: list[Tensor], dh_BTND: Tensor, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of h (of its one row, where its streams are copies), and of B and y where y waited."""
    if outputs:
        return torch.empty_like(dh_BTND), like.new_empty(dh_BTND.shape[:3]), torch.empty_like(outputs[-1])
    return torch.empty_like(start), like.new_empty(0), like.new_empty(0)


def power_of_two(n: int) -> int:
    """The least that is no less."""
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs can be expected to run at once, in units of those that share one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
