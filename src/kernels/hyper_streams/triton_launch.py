"""Launch of the Triton kernels on hyper streams.

Shape letters: N streams, R rows of shares.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple  # arguments of a kernel have types of Triton's own

import torch
from torch import Tensor

from src.kernels.hyper_streams.recompute import SEGMENT, Segment
from src.kernels.hyper_streams.streams import Streams

#: Maximum number of elements of a token's streams; more do not fit a program's registers.
MAX_ELEMENTS = 16384
#: Elements of a thread, and warps of a multiprocessor that share its registers, for the two directions.
FORWARD, BACKWARD = (64, 12), (32, 12)
REGISTERS = 65536  # of a multiprocessor


# ---- launch


def plan_by_token(kernel: Any, h: Tensor, tokens: int, n_stream: int, direction: tuple[int, int]) -> "Launch":
    """Return the launch of a kernel whose programs hold the streams of one token at a time."""
    elements, max_warps = direction
    warps = max(1, min(16, next_power_of_two(n_stream * next_power_of_two(h.shape[-1]) // (32 * elements))))
    programs = min(tokens, count_multiprocessors(h.device) * max(1, max_warps // warps))
    registers = min(255, REGISTERS // (32 * max(max_warps, warps)) // 8 * 8)
    return Launch(kernel, (programs,), warps, h, n_stream, {"maxnreg": registers})


class Launch(NamedTuple):
    """Kernel, its grid of programs and its options, for streams like `h`."""

    kernel: Any
    grid: tuple[int, ...]
    warps: int
    h: Tensor
    n_stream: int
    options: Mapping[str, int] = MappingProxyType({})

    def __call__(self, *args: Any, **constants: Any) -> None:
        """Run the kernel; all tensors are contiguous."""
        import triton.language as tl

        D = self.h.shape[-1]
        accumulation = tl.float64 if self.h.dtype == torch.float64 else tl.float32
        tensors = [x for x in args if isinstance(x, Tensor)]
        assert all(x.is_contiguous() for x in tensors)  # the kernels know sizes, not strides
        constants |= {"D": D, "DP": next_power_of_two(D), "N": self.n_stream, "F": accumulation}
        options = {"num_warps": self.warps, "enable_fp_fusion": True, **self.options}
        with torch.cuda.device_of(self.h):  # type: ignore[no-untyped-call]  # torch's
            self.kernel[self.grid](*args, **constants, BATCHED=self.h.device.type == "cuda", **options)


def output_table(start: Tensor, outputs: list[Tensor]) -> Tensor:
    """Return a table of the outputs' addresses on their device.

    A kernel writes it from its arguments, which saves a copy from the host.
    """
    from src.kernels.hyper_streams.triton_common import store_addresses

    length = max(SEGMENT.values())
    table = torch.empty(length, dtype=torch.int64, device=start.device)
    if outputs:
        padded = (*outputs, *outputs[:1] * (length - len(outputs)))
        with torch.cuda.device_of(table):  # type: ignore[no-untyped-call]  # torch's
            store_addresses[(1,)](padded, table, K=length, num_warps=1, enable_fp_fusion=True)
    return table


def count_shares(h: Tensor, y_BTD: Tensor | None, shares_BTRN: Tensor | None, n: int) -> tuple[int, int, int]:
    """Return the rows of shares that a read takes, those it returns, and a power of two that holds the most rows."""
    rows = Segment(h, (), shares_BTRN).n_row
    return rows, rows + (y_BTD is not None), next_power_of_two(n + max(SEGMENT.values()))


def allocate_results(
    h: Tensor, y_BTD: Tensor | None, shares_BTRN: Tensor | None, like: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return uninitialized u [B, T, D], mixed streams [B, T, N, D], B [B, T, N] and shares [B, T, R, N]."""
    B, T, D = *h.shape[:2], h.shape[-1]
    u_BTD = like.new_empty(B, T, D) if y_BTD is None else torch.empty_like(y_BTD)
    _, R, _ = count_shares(h, y_BTD, shares_BTRN, n)
    return u_BTD, h.new_empty(B, T, n, D), like.new_empty(B, T, n), like.new_empty(B, T, R, n)


def allocate_gradients(
    start: Tensor, outputs: list[Tensor], dh_BTND: Tensor, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialized gradients of h (of its one row, if its streams are copies), and of B and y if y is pending."""
    if outputs:
        return torch.empty_like(dh_BTND), like.new_empty(dh_BTND.shape[:3]), torch.empty_like(outputs[-1])
    return torch.empty_like(start), like.new_empty(0), like.new_empty(0)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two >= n."""
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def count_multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a device, each of which runs several programs at once."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


# ---- dispatch


def read_case(state: Streams, compute: torch.dtype) -> dict[str, Any]:
    """Return the sizes and dtypes by which the backend of a read is selected.

    Args:
        state: N streams [B, T, N, D].
        compute: dtype of the site's parameters.
    """
    n_stream, width = state.h_BTND.shape[2:]
    output = compute if state.y_BTD is None else state.y_BTD.dtype
    if state.y_BTD is None and state.h_BTND.is_cuda:
        output = torch.bfloat16  # that of the outputs to come: GPUs train under bfloat16 autocast
    return {"width": width, "n_stream": n_stream, "compute": compute, "output": output}


def why_not_streams(dtype: torch.dtype, case: Mapping[str, Any], max_streams: int) -> str | None:
    """Return why the Triton kernels do not support streams of these sizes and dtypes, or None."""
    width, n, compute = case["width"], case["n_stream"], case["compute"]
    if dtype not in SEGMENT:
        return f"streams must be float32, bfloat16 or float64, not {dtype}"
    if compute != (torch.float64 if dtype == torch.float64 else torch.float32):
        return f"parameters of {compute} do not fit streams of {dtype}"
    if width % 16 or n * next_power_of_two(width) > MAX_ELEMENTS:
        return f"the width must be a multiple of 16 and all streams at most {MAX_ELEMENTS} elements, not {n} x {width}"
    return None if n <= max_streams else f"there are kernels for at most {max_streams} streams, not {n}"
