"""What a chip could do at most: its published peak, and what a large matrix product and a copy reach on it."""

import dataclasses
import functools
import time
from collections.abc import Callable

import torch

from src.kernels.cpu_matmul import for_now, serves

#: Dense bf16 FLOP/s by a word in the device's name, from the makers' data sheets (SXM where there are several).
BF16_PEAKS = {
    "B200": 2250e12,
    "GB200": 2500e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 209e12,
}
SIZE = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 2**30, "cpu": 2**28}


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """FLOP/s that a step is held against: the chip's published peak, where there is one, and a matrix product's.

    Beside them bytes per second of a copy, read and written.
    """

    peak: float | None
    product: float
    product_words: str
    copy: float


@functools.cache
def ceiling_of(device: str, *, bf16: bool) -> Ceiling:
    """The peak that is published for a precision, and what a large matrix product reaches in it now."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    words = f"a large {str(dtype).removeprefix('torch.')} matrix product's speed"
    if device == "cpu":
        with for_now(serves("auto")):
            product = matmul_speed(device, dtype)
        return Ceiling(None, product, words + " in CPU time", copy_speed(device))
    peak = published_peak(torch.cuda.get_device_name()) if bf16 else None
    return Ceiling(peak, matmul_speed(device, dtype), words, copy_speed(device))


def published_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name; None where the table has none."""
    known = [word for word in BF16_PEAKS if word in name]
    return BF16_PEAKS[max(known, key=len)] if known else None


def matmul_speed(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product; on a CPU per second of CPU time of a thread."""
    n = SIZE[device]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / _best_seconds(device, lambda: a @ b)


def copy_speed(device: str) -> float:
    """Bytes per second, read and written, of a copy too large for any cache."""
    a, b = (torch.ones(COPIED[device], dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * COPIED[device] / _best_seconds(device, lambda: b.copy_(a))


def _best_seconds(device: str, work: Callable[[], object]) -> float:
    """Of several times."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    best = float("inf")
    for _ in range(6):
        if device == "cuda":
            torch.cuda.synchronize()
        began = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - began)
    return best
